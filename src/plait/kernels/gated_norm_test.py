import pytest
import torch
from torch.nn import functional as F

from plait.kernels import gated_norm, native
from plait.kernels.gated_norm import gated_rms_norm, rms_norm
from plait.kernels.tolerances import assert_close

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def naive(y, z, weight, eps, num_groups):
    """Gate, then a norm per group written out in a loop."""
    gated = y if z is None else y * F.silu(z)
    width = y.shape[-1] // num_groups
    groups = []
    for group in gated.split(width, -1):
        groups.append(group / torch.sqrt((group**2).sum(-1, keepdim=True) / width + eps))
    return torch.cat(groups, -1) * weight


def make_inputs(*shape, dtype=torch.float64, count=2):
    generator = torch.Generator().manual_seed(0)
    shapes = [shape] * count + [shape[-1:]]
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return [t.requires_grad_() for t in tensors]


def with_gradients(function, inputs):
    out = function(*inputs)
    grad = torch.randint(-8, 9, out.shape, generator=torch.Generator().manual_seed(1)) / 8
    return [out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


@pytest.mark.parametrize("block_elements", [1, 1 << 18])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("shape", [(1, 12), (2, 63, 12), (257, 12)])
def test_gated_norm_agrees_with_the_definition(
    shape, num_groups, dtype, block_elements, monkeypatch
):
    monkeypatch.setattr(gated_norm, "_BLOCK_ELEMENTS", block_elements)
    with native.off():
        _check(shape, num_groups, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("shape", [(1, 12), (2, 63, 12), (257, 240)])
def test_the_native_gated_norm_agrees_with_the_definition(shape, num_groups, dtype):
    _check(shape, num_groups, dtype)


def _check(shape, num_groups, dtype):
    inputs = make_inputs(*shape, dtype=dtype)
    got = with_gradients(lambda y, z, w: gated_rms_norm(y, z, w, 1e-3, num_groups), inputs)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    want = with_gradients(lambda y, z, w: naive(y, z, w, 1e-3, num_groups), wide)
    for name, g, w in zip(("out", "y", "z", "weight"), got, want, strict=True):
        assert g.dtype == dtype
        assert_close("rms_norm", dtype, name, g, w)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(10,), (3, 7, 10)])
def test_norm_agrees_with_the_definition(shape, dtype, form):
    inputs = make_inputs(*shape, dtype=dtype, count=1)
    got = with_gradients(lambda x, w: rms_norm(x, w, 1e-3), inputs)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    want = with_gradients(lambda x, w: naive(x, None, w, 1e-3, 1), wide)
    for name, g, w in zip(("out", "x", "weight"), got, want, strict=True):
        assert g.dtype == dtype
        assert_close("rms_norm", dtype, name, g, w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(dtype):
    inputs = make_inputs(257, 12, dtype=dtype)
    want = with_gradients(lambda y, z, w: gated_rms_norm(y, z, w, 1e-3, 3), inputs)
    torch.set_num_threads(3)
    got = with_gradients(lambda y, z, w: gated_rms_norm(y, z, w, 1e-3, 3), inputs)
    for name, g, w in zip(("out", "y", "z", "weight"), got, want, strict=True):
        assert torch.equal(g, w), name


def test_gradcheck():
    inputs = make_inputs(3, 6)
    assert torch.autograd.gradcheck(lambda y, z, w: gated_rms_norm(y, z, w, 1e-2, 2), inputs)


def test_weight_wider_than_activations_keeps_its_gradient_wide():
    x, weight = make_inputs(5, 8, dtype=torch.bfloat16, count=1)
    weight = weight.detach().float().requires_grad_()
    out = rms_norm(x, weight, 1e-5)
    assert out.dtype == torch.bfloat16
    assert torch.autograd.grad(out.sum(), weight)[0].dtype == torch.float32


def test_the_gate_comes_before_the_norm():
    y, z, weight = make_inputs(4, 6)
    # a gate that only scales a whole row is undone by a norm that follows it
    z = torch.full_like(z, 3.0)
    assert_close(
        "rms_norm",
        torch.float64,
        "out",
        gated_rms_norm(y, z, weight, 0.0, 1),
        rms_norm(y, weight, 0.0),
    )


def test_groups_must_divide_the_channels():
    y, z, weight = make_inputs(2, 8)
    with pytest.raises(ValueError, match="8 channels are no multiple of 3 groups"):
        gated_rms_norm(y, z, weight, 1e-5, 3)
