import inspect

import pytest
import torch

from plait.kernels import ssd
from plait.kernels.documents import Documents
from plait.kernels.ssd import ssd_scan
from plait.kernels.ssd_naive import ssd_scan_naive
from plait.kernels.tolerances import assert_close

NAMES = ("x", "dt", "A", "B", "C", "D", "initial_state")
PACKED = [0, 1, 1, 34, 98, 161]  # a document of one token, an empty one, a whole number of chunks


def make_inputs(T, *, rows=1, sequences=None, H=4, P=80, G=2, N=12, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = (
        normal(rows, T, H, P),
        torch.rand(rows, T, H, generator=generator, dtype=torch.float64) * 0.3,
        -torch.rand(H, generator=generator, dtype=torch.float64) * 8,
        normal(rows, T, G, N),
        normal(rows, T, G, N),
        normal(H),
        normal(sequences or rows, H, P, N),
    )
    tensors = [t.to(dtype) for t in tensors]
    tensors[1:3] = [t.to(torch.promote_types(dtype, torch.float32)) for t in tensors[1:3]]
    tensors[6] = tensors[6].to(torch.promote_types(dtype, torch.float32))
    return [t.requires_grad_() for t in tensors]


def run(scan, inputs, **options):
    *tensors, state = inputs
    return scan(*tensors, initial_state=state, **options)


def with_gradients(scan, inputs, **options):
    """Return (y, final state) and the gradients of all inputs for fixed random output gradients."""
    out = run(scan, inputs, **options)
    generator = torch.Generator().manual_seed(1)
    # exact in every dtype, so that no reference sees other gradients
    grads = [torch.randint(-8, 9, o.shape, generator=generator).to(o.dtype) / 8 for o in out]
    return [o.detach() for o in out] + list(torch.autograd.grad(out, inputs, grads))


def double(inputs):
    return [t.detach().double().requires_grad_() for t in inputs]


CASES = {
    "1": ({"T": 1}, None),
    "63": ({"T": 63, "rows": 2}, None),
    "257": ({"T": 257}, None),
    "whole chunks": ({"T": 64}, None),
    "one group": ({"T": 40, "G": 1, "P": 5}, None),
    "groups of one": ({"T": 40, "G": 4, "P": 5}, None),
    "packed": ({"T": PACKED[-1], "sequences": len(PACKED) - 1}, PACKED),
}


FORMS = [(torch.float64, "torch")] + [
    (dtype, form) for dtype in (torch.float32, torch.bfloat16) for form in ("torch", "native")
]


@pytest.mark.parametrize(("dtype", "form"), FORMS, indirect=["form"])
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_recurrence(case, dtype, form):
    shape, bounds = CASES[case]
    cu_seqlens = None if bounds is None else torch.tensor(bounds, dtype=torch.int32)
    inputs = make_inputs(**shape, dtype=dtype)
    got = with_gradients(ssd_scan, inputs, cu_seqlens=cu_seqlens)
    want = with_gradients(ssd_scan_naive, double(inputs), cu_seqlens=cu_seqlens)
    assert got[0].dtype == dtype
    assert got[1].dtype == torch.promote_types(dtype, torch.float32)
    for name, g, w, like in zip(
        ("y", "final_state", *NAMES), got, want, [*got[:2], *inputs], strict=True
    ):
        assert g.dtype == like.dtype
        op = "ssd_scan dA" if name == "A" else "ssd_scan"
        assert_close(op, dtype, f"{case}: {name}", g, w)


def test_decays_far_beyond_the_range_of_exp_stay_finite(form):
    inputs = make_inputs(70, P=5, dtype=torch.float32)
    with torch.no_grad():
        inputs[1].mul_(1000)
    got = with_gradients(ssd_scan, inputs)
    want = with_gradients(ssd_scan_naive, double(inputs))
    for name, g, w in zip(("y", "final_state"), got, want, strict=False):
        assert_close("ssd_scan", torch.float32, name, g, w)
    assert all(g.isfinite().all() for g in got)


def test_gradcheck():
    inputs = make_inputs(5, sequences=2, H=2, G=1, P=1, N=2)
    bounds = torch.tensor([0, 1, 5], dtype=torch.int32)

    def scan(*tensors):
        return tuple(run(ssd_scan, tensors, cu_seqlens=bounds, chunk_length=3))

    assert torch.autograd.gradcheck(scan, inputs)


@pytest.mark.parametrize("chunk_length", [1, 7, 200])
@pytest.mark.parametrize("block_tokens", [1, 64, None])
def test_chunks_and_blocks_do_not_matter(chunk_length, block_tokens, monkeypatch):
    inputs = make_inputs(PACKED[-1], sequences=len(PACKED) - 1, P=4)
    bounds = torch.tensor(PACKED)
    want = with_gradients(ssd_scan, inputs, cu_seqlens=bounds, chunk_length=32)
    monkeypatch.setitem(ssd.SCAN_BLOCKS, "cpu", (32, block_tokens))
    got = with_gradients(ssd_scan, inputs, cu_seqlens=bounds, chunk_length=chunk_length)
    for name, g, w in zip(("y", "final_state", *NAMES), got, want, strict=True):
        assert_close("ssd_scan", torch.float64, name, g, w)


def test_documents_object_and_no_grad_give_the_same_bits():
    inputs = make_inputs(PACKED[-1], sequences=len(PACKED) - 1, P=4, dtype=torch.float32)
    want = run(ssd_scan, inputs, cu_seqlens=torch.tensor(PACKED))
    with torch.no_grad():
        got = run(ssd_scan, inputs, cu_seqlens=Documents(torch.tensor(PACKED)))
    assert torch.equal(got.y, want.y)
    assert torch.equal(got.final_state, want.final_state)
    assert not got.y.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_last_token_of_a_document_reaches_nothing_outside(dtype):
    inputs = make_inputs(PACKED[-1], sequences=len(PACKED) - 1, P=4, dtype=dtype)
    with torch.no_grad():
        inputs[1].mul_(0.1)  # so that float32 sees the end of a document from its beginning
    changed = [t.detach().clone() for t in inputs]
    token, document = PACKED[4] - 1, 3
    for tensor in (changed[0], changed[1], changed[3], changed[4]):
        tensor[0, token] += 1
    changed = [t.requires_grad_() for t in changed]
    bounds = torch.tensor(PACKED)
    before = with_gradients(ssd_scan, inputs, cu_seqlens=bounds)
    after = with_gradients(ssd_scan, changed, cu_seqlens=bounds)
    outside = torch.ones(PACKED[-1], dtype=torch.bool)
    outside[PACKED[3] : PACKED[4]] = False
    others = torch.arange(len(PACKED) - 1) != document
    for index, name in enumerate(("y", "final_state", *NAMES)):
        a, b = before[index], after[index]
        if name in ("final_state", "initial_state"):
            assert torch.equal(a[others], b[others]), name
            assert not torch.equal(a[document], b[document]), name
        elif a.dim() > 1:
            assert torch.equal(a[:, outside], b[:, outside]), name
            assert not torch.equal(a[:, ~outside], b[:, ~outside]), name


def test_final_state_continues_the_sequence():
    x, dt, A, B, C, D, state = (t.detach() for t in make_inputs(100, P=6))
    whole = ssd_scan(x, dt, A, B, C, D, initial_state=state)
    first = ssd_scan(x[:, :37], dt[:, :37], A, B[:, :37], C[:, :37], D, initial_state=state)
    rest = ssd_scan(
        x[:, 37:], dt[:, 37:], A, B[:, 37:], C[:, 37:], D, initial_state=first.final_state
    )
    assert_close("ssd_scan", torch.float64, "y", torch.cat([first.y, rest.y], 1), whole.y)
    assert_close("ssd_scan", torch.float64, "state", rest.final_state, whole.final_state)


@pytest.mark.parametrize("which", [0, 1])
def test_gradients_when_only_one_output_is_used(which):
    inputs = make_inputs(45, P=3)
    got = torch.autograd.grad(run(ssd_scan, inputs)[which].sum(), inputs, allow_unused=True)
    want = torch.autograd.grad(run(ssd_scan_naive, inputs)[which].sum(), inputs, allow_unused=True)
    for name, g, w in zip(NAMES, got, want, strict=True):
        assert_close("ssd_scan", torch.float64, name, g, torch.zeros_like(g) if w is None else w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strong_decay_stays_finite(dtype, form):
    inputs = make_inputs(70, P=3, dtype=dtype)
    with torch.no_grad():
        inputs[1].mul_(1e4)
        inputs[2].mul_(1e4)
    for name, result in zip(("y", "state", *NAMES), with_gradients(ssd_scan, inputs), strict=True):
        assert result.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(dtype):
    inputs = make_inputs(PACKED[-1], sequences=len(PACKED) - 1, P=20, dtype=dtype)
    want = with_gradients(ssd_scan, inputs, cu_seqlens=torch.tensor(PACKED))
    torch.set_num_threads(3)
    got = with_gradients(ssd_scan, inputs, cu_seqlens=torch.tensor(PACKED))
    for name, g, w in zip(("y", "final_state", *NAMES), got, want, strict=True):
        assert torch.equal(g, w), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_views_of_one_wider_tensor_serve_as_inputs(dtype):
    x, dt, A, B, C, D, _ = make_inputs(50, P=3, N=5, dtype=dtype)
    packed = torch.cat([t.detach().flatten(2) for t in (x, B, C)], -1).requires_grad_()
    views = packed.split([12, 10, 10], -1)
    y = ssd_scan(
        views[0].unflatten(2, (4, 3)), dt, A, *(v.unflatten(2, (2, 5)) for v in views[1:]), D
    ).y
    want = ssd_scan(x, dt, A, B, C, D).y
    assert torch.equal(y, want)
    grad = torch.autograd.grad(y.square().sum(), packed)[0]
    wants = torch.autograd.grad(want.square().sum(), (x, B, C))
    assert torch.equal(grad, torch.cat([w.flatten(2) for w in wants], -1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nothing_to_scan(dtype):
    inputs = make_inputs(0, P=3, dtype=dtype)
    out = run(ssd_scan, inputs)
    assert out.y.shape == (1, 0, 4, 3)
    assert torch.equal(out.final_state, inputs[-1])


def test_heads_must_divide_into_groups():
    inputs = make_inputs(3, H=4, P=2)
    x, dt, A, _, _, D, _ = inputs
    B = torch.zeros(1, 3, 3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="4 heads are no multiple of 3 groups"):
        ssd_scan(x, dt, A, B, B, D)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_sequence_needs_its_initial_state(dtype):
    x, dt, A, B, C, D, state = make_inputs(6, sequences=3, H=4, P=2, dtype=dtype)
    with pytest.raises(ValueError, match=r"3 initial states .* for 2 sequences"):
        ssd_scan(x, dt, A, B, C, D, initial_state=state, cu_seqlens=torch.tensor([0, 2, 6]))


@pytest.mark.parametrize("shape", [(1, 3, 2, 12), (1, 4, 3, 12), (1, 4, 2, 13), (1, 4, 12, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_initial_states_of_another_shape_are_refused(dtype, shape):
    x, dt, A, B, C, D, _ = make_inputs(6, H=4, P=2, dtype=dtype)
    # without the checks of types that only tests have
    unchecked = inspect.unwrap(ssd_scan)
    with pytest.raises(ValueError, match=r"for 1 sequences; each needs one of shape \(4, 2, 12\)"):
        unchecked(x, dt, A, B, C, D, initial_state=torch.zeros(shape, dtype=dtype))


def test_memory_is_linear_in_tokens(memory):
    def peak(T):
        inputs = make_inputs(T, P=4, N=4, dtype=torch.float32)
        return memory(lambda: with_gradients(ssd_scan, inputs)).peak

    assert peak(1024) < 2.2 * peak(512)
