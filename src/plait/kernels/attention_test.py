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


def run_with_cache(steps, inputs, before, capacity=90):
    """Feed the tokens of each row in steps of given sizes behind `before[row]` others."""
    q, k, v = (t.detach() for t in inputs)
    cache = [torch.full((len(q), 2, capacity, 20), 7.0, dtype=q.dtype) for _ in range(2)]
    lengths = torch.tensor([0] * len(q))
    outputs, done = [], 0
    for step in steps:
        new = slice(done, done + step)
        write_cache(*cache, k[:, new], v[:, new], lengths)
        outputs.append(cached_attention(q[:, new], *cache, lengths))
        lengths, done = lengths + step, done + step
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", [5, 256])
@pytest.mark.parametrize("steps", [(70,), (30, 40), (1, 68, 1), (3, 7, 1, 1, 58)])
def test_any_division_into_steps_gives_the_whole(steps, tile, dtype, monkeypatch):
    monkeypatch.setattr(attention, "_QUERY_TILE", tile)
    inputs = make_inputs(70, rows=2, dtype=dtype)
    want = naive(*(t.detach().double() for t in inputs))
    got = run_with_cache(steps, inputs, None)
    assert got.dtype == dtype
    assert_close("attention", dtype, "y", got, want)


@pytest.mark.parametrize("num_new", [1, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_rows_of_different_lengths(num_new, packed):
    lengths = torch.tensor([9, 0, 63])
    total = 63 + num_new
    q, k, v = (t.detach() for t in make_inputs(total, rows=3))
    cache = [torch.zeros(3, 2, 80, 20, dtype=torch.float64) for _ in range(2)]
    want = []
    for row, length in enumerate(lengths.tolist()):
        for tensor, source in zip(cache, (k, v), strict=True):
            tensor[row, :, :length] = source[row, :length].transpose(0, 1)
        end = length + num_new
        whole = naive(q[row : row + 1, :end], k[row : row + 1, :end], v[row : row + 1, :end])
        want.append(whole[:, length:])
    new = [
        torch.cat([t[row : row + 1, n : n + num_new] for row, n in enumerate(lengths.tolist())])
        for t in (q, k, v)
    ]
    if packed:
        new = [t.flatten(0, 1)[None] for t in new]
        bounds = torch.arange(4, dtype=torch.int32) * num_new
        want = torch.cat(want, 1)
    else:
        bounds = None
        want = torch.cat(want)
    write_cache(*cache, *new[1:], lengths, cu_seqlens=bounds)
    got = cached_attention(new[0], *cache, lengths, cu_seqlens=bounds)
    assert_close("attention", torch.float64, "y", got, want)


def test_packed_documents_over_a_cache_may_be_empty_or_begin_anew():
    bounds = torch.tensor([0, 3, 3, 8])
    lengths = torch.tensor([4, 2, 0])
    q, k, v = (t.detach() for t in make_inputs(8))
    old = [t.detach() for t in make_inputs(4, rows=3)]
    cache = [torch.zeros(3, 2, 12, 20, dtype=torch.float64) for _ in range(2)]
    write_cache(*cache, *old[1:], torch.zeros(3, dtype=torch.int64))
    write_cache(*cache, k, v, lengths, cu_seqlens=bounds)
    got = cached_attention(q, *cache, lengths, cu_seqlens=bounds)
    first = [torch.cat([o[:1], t[:, :3]], 1) for o, t in zip(old, (q, k, v), strict=True)]
    assert_close("attention", torch.float64, "continued", got[:, :3], naive(*first)[:, 4:])
    fresh = naive(q[:, 3:], k[:, 3:], v[:, 3:])
    assert_close("attention", torch.float64, "fresh", got[:, 3:], fresh)
    assert not cache[0][1, :, 4:].any()


def test_memory_is_linear_in_tokens(memory):
    def peak(T):
        inputs = make_inputs(T, dtype=torch.float32)
        bounds = torch.arange(0, T + 1, 128)
        return memory(lambda: causal_attention(*inputs, cu_seqlens=bounds).sum().backward()).peak

    assert peak(1024) < 2.2 * peak(512)


def test_the_mask_over_a_cache_is_linear_in_tokens(memory):
    def largest(T):
        q, k, v = (t.detach() for t in make_inputs(T, dtype=torch.float32, Hq=2, Hk=2, E=4))
        cache = k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()
        return memory(lambda: cached_attention(q[:, 1:], *cache, torch.tensor([1]))).largest

    assert largest(2048) < 2.2 * largest(1024)
