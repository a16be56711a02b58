import pytest
import torch

from plait.kernels import attention
from plait.kernels.attention import cached_attention, causal_attention, write_cache
from plait.kernels.tolerances import assert_close

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
PACKED = [0, 1, 1, 30, 63, 70]


def naive(q, k, v, bounds=None):
    """Softmax over scores written out, with a mask of who sees whom."""
    (_num_rows, T, Hq, E), Hk = q.shape, k.shape[2]
    bounds = [0, T] if bounds is None else bounds
    document = torch.bucketize(torch.arange(T), torch.tensor(bounds), right=True)
    position = torch.arange(T)
    seen = (document[:, None] == document) & (position[:, None] >= position)
    k, v = (t.repeat_interleave(Hq // Hk, dim=2) for t in (k, v))
    scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / E**0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bkhe->bqhe", weights, v)


def make_inputs(T, rows=1, dtype=torch.float64, Hq=6, Hk=2, E=20):
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, T, Hq, E), (rows, T, Hk, E), (rows, T, Hk, E)
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return [t.requires_grad_() for t in tensors]


def with_gradients(function, inputs):
    out = function(*inputs)
    grad = torch.randint(-8, 9, out.shape, generator=torch.Generator().manual_seed(1)) / 8
    return [out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("T", "rows", "bounds"), [(1, 1, None), (63, 2, None), (257, 1, None), (70, 1, PACKED)]
)
def test_agrees_with_softmax_written_out(T, rows, bounds, dtype):
    inputs = make_inputs(T, rows, dtype)
    cu_seqlens = None if bounds is None else torch.tensor(bounds, dtype=torch.int32)
    got = with_gradients(lambda q, k, v: causal_attention(q, k, v, cu_seqlens=cu_seqlens), inputs)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    want = with_gradients(lambda q, k, v: naive(q, k, v, bounds), wide)
    for name, g, w in zip(("y", "q", "k", "v"), got, want, strict=True):
        assert g.dtype == dtype
        assert_close("attention", dtype, name, g, w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("E", [32, 64, 128])
@pytest.mark.parametrize(("T", "before"), [(16, 0), (33, 0), (257, 0), (17, 110), (130, 127)])
def test_widths_that_the_native_form_takes_agree_too(T, before, E, dtype):
    q, k, v = (t.detach() for t in make_inputs(before + T, 2, dtype, E=E))
    lengths = [before, before // 2]
    new = torch.stack([q[row, length : length + T] for row, length in enumerate(lengths)])
    got = cached_attention(new, k, v, lengths)
    assert got.dtype == dtype
    whole = naive(q.double(), k.double(), v.double())
    want = torch.stack([whole[row, length : length + T] for row, length in enumerate(lengths)])
    assert_close("attention", dtype, "y", got, want)


def test_queries_an_odd_number_of_values_apart():
    q, k, v = (t.detach() for t in make_inputs(40, dtype=torch.bfloat16, Hq=1, Hk=1, E=64))
    apart = torch.cat([q, q[..., :1]], 3)[..., :64]
    assert apart.stride(1) == 65
    got = causal_attention(apart, k, v)
    assert_close("attention", torch.bfloat16, "y", got, naive(q.double(), k.double(), v.double()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_and_threads_change_no_bit_and_what_is_not_finite_is_passed_on(dtype):
    q, k, v = (t.detach() for t in make_inputs(300, dtype=dtype, Hq=2, Hk=2, E=64))
    want = causal_attention(q, k, v)
    torch.set_num_threads(3)
    assert torch.equal(causal_attention(*torch.cat([q, k, v], 3).split(64, 3)), want)
    v[0, 200, 1, 3] = torch.nan
    got = causal_attention(q, k, v)
    assert got[0, 200:, 1, 3].isnan().all()
    got[0, 200:, 1, 3] = want[0, 200:, 1, 3]
    assert torch.equal(got[:, 200:], want[:, 200:])


def test_the_last_token_of_a_document_reaches_nothing_outside():
    inputs = make_inputs(PACKED[-1])
    changed = [t.detach().clone() for t in inputs]
    for tensor in changed:
        tensor[0, PACKED[4] - 1] += 1
    changed = [t.requires_grad_() for t in changed]
    bounds = torch.tensor(PACKED)

    def run(q, k, v):
        return causal_attention(q, k, v, cu_seqlens=bounds)

    outside = torch.ones(PACKED[-1], dtype=torch.bool)
    outside[PACKED[3] : PACKED[4]] = False
    for a, b in zip(with_gradients(run, inputs), with_gradients(run, changed), strict=True):
        assert torch.equal(a[:, outside], b[:, outside])
        assert not torch.equal(a[:, ~outside], b[:, ~outside])


class Cache:
    """Keys and values of some sequences: a block each, or short blocks in random order."""

    def __init__(self, num_rows, capacity, dtype, block_tokens=None):
        self.tables, blocks, tokens = None, num_rows, capacity
        if block_tokens:
            per_row, tokens = -(-capacity // block_tokens), block_tokens
            blocks = num_rows * per_row + 3
            order = torch.randperm(blocks, generator=torch.Generator().manual_seed(0))
            self.tables = order[: num_rows * per_row].view(num_rows, per_row)
        self.key, self.value = (
            torch.full((blocks, tokens, 2, 20), 7.0, dtype=dtype) for _ in range(2)
        )

    def slots(self, row, start, count):
        positions = torch.arange(start, start + count)
        if self.tables is None:
            return row * self.key.shape[1] + positions
        size = self.key.shape[1]
        return self.tables[row, positions // size] * size + positions % size

    def step(self, q, k, v, before, cu_seqlens=None):
        counts = [q.shape[1]] * len(q) if cu_seqlens is None else cu_seqlens.diff().tolist()
        spans = enumerate(zip(before, counts, strict=True))
        slots = torch.cat([self.slots(row, *span) for row, span in spans])
        write_cache(self.key, k, slots)
        write_cache(self.value, v, slots)
        return cached_attention(
            q, self.key, self.value, before, block_tables=self.tables, cu_seqlens=cu_seqlens
        )


BLOCKS = pytest.mark.parametrize("block_tokens", [None, 4, 13])


@BLOCKS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tile", "values"), [(5, 1 << 24), (256, 1 << 24), (256, 1), (5, 3000)])
@pytest.mark.parametrize("steps", [(70,), (30, 40), (1, 68, 1), (3, 7, 1, 1, 58)])
def test_any_division_gives_the_whole(steps, tile, values, dtype, block_tokens, monkeypatch):
    """Into steps, into tiles of queries, and into heads and sequences brought together."""
    monkeypatch.setattr(attention, "QUERY_TILE", tile)
    monkeypatch.setattr(attention, "ATTENTION_VALUES", values)
    inputs = [t.detach() for t in make_inputs(70, rows=2, dtype=dtype)]
    cache, outputs, done = Cache(2, 90, dtype, block_tokens), [], 0
    for step in steps:
        new = [t[:, done : done + step] for t in inputs]
        outputs.append(cache.step(*new, [done, done]))
        done += step
    got = torch.cat(outputs, 1)
    assert got.dtype == dtype
    assert_close("attention", dtype, "y", got, naive(*(t.double() for t in inputs)))


@BLOCKS
@pytest.mark.parametrize("num_new", [1, 4])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("values", [1, 3000, 1 << 24])
def test_rows_of_different_lengths(num_new, packed, values, block_tokens, monkeypatch):
    monkeypatch.setattr(attention, "ATTENTION_VALUES", values)
    lengths = [9, 0, 63]
    q, k, v = (t.detach() for t in make_inputs(63 + num_new, rows=3))
    cache = Cache(3, 80, torch.float64, block_tokens)
    want, new = [], []
    for row, length in enumerate(lengths):
        whole = [t[row : row + 1, : length + num_new] for t in (q, k, v)]
        for tensor, source in ((cache.key, k), (cache.value, v)):
            tensor.flatten(0, 1)[cache.slots(row, 0, length)] = source[row, :length]
        want.append(naive(*whole)[:, length:])
        new.append([t[:, length:] for t in whole])
    pieces = [torch.cat(t, 1 if packed else 0) for t in zip(*new, strict=True)]
    bounds = torch.arange(4) * num_new if packed else None
    got = cache.step(*pieces, lengths, bounds)
    assert_close("attention", torch.float64, "y", got, torch.cat(want, 1 if packed else 0))


@BLOCKS
def test_packed_documents_over_a_cache_may_be_empty_or_begin_anew(block_tokens):
    bounds = torch.tensor([0, 3, 3, 8])
    q, k, v = (t.detach() for t in make_inputs(8))
    old = [t.detach() for t in make_inputs(4, rows=3)]
    cache = Cache(3, 12, torch.float64, block_tokens)
    cache.step(*old, [0, 0, 0])
    got = cache.step(q, k, v, [4, 2, 0], bounds)
    first = [torch.cat([o[:1], t[:, :3]], 1) for o, t in zip(old, (q, k, v), strict=True)]
    assert_close("attention", torch.float64, "continued", got[:, :3], naive(*first)[:, 4:])
    fresh = naive(q[:, 3:], k[:, 3:], v[:, 3:])
    assert_close("attention", torch.float64, "fresh", got[:, 3:], fresh)


def test_memory_is_linear_in_tokens(memory):
    def peak(T):
        inputs = make_inputs(T, dtype=torch.float32)
        bounds = torch.arange(0, T + 1, 128)
        return memory(lambda: causal_attention(*inputs, cu_seqlens=bounds).sum().backward()).peak

    assert peak(1024) < 2.2 * peak(512)


def test_the_mask_over_a_cache_is_linear_in_tokens(memory):
    def largest(T):
        q, k, v = (t.detach() for t in make_inputs(T, dtype=torch.float32, Hq=2, Hk=2, E=4))
        return memory(lambda: cached_attention(q[:, 1:], k, v, [1])).largest

    assert largest(2048) < 2.2 * largest(1024)
