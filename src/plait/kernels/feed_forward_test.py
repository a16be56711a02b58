import pytest
import torch

from plait.kernels import processor
from plait.kernels.feed_forward import feed_forward
from plait.kernels.linear import linear
from plait.kernels.tolerances import assert_close


def make_inputs(dtype, weight_dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 9, 5), (11, 5), (5, 11), (11,), (5,)
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    dtypes = dtype, *[weight_dtype] * 4
    return [t.to(d).requires_grad_() for t, d in zip(tensors, dtypes, strict=True)]


def naive(x, up, down, up_bias, down_bias):
    hidden = torch.einsum("btd,fd->btf", x, up) + up_bias
    hidden = torch.where(hidden > 0, hidden, 0) ** 2
    return torch.einsum("btf,df->btd", hidden, down) + down_bias


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_agrees_with_the_definition(dtype, weight_dtype, with_bias):
    inputs = make_inputs(dtype, weight_dtype)
    wide = [t.detach().to(dtype).double().requires_grad_() for t in inputs]
    if not with_bias:
        inputs, wide = inputs[:3], wide[:3]
    zero = torch.zeros((), dtype=torch.float64)
    got = feed_forward(*inputs)
    want = naive(*wide) if with_bias else naive(*wide, zero, zero)
    assert got.dtype == dtype
    assert_close("feed_forward", dtype, "y", got, want)
    grads = torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(want.sum(), wide)
    for index, (g, w) in enumerate(zip(*grads, strict=True)):
        assert g.dtype == inputs[index].dtype
        assert_close("feed_forward", dtype, f"gradient {index}", g, w)


def test_without_gradients_it_computes_the_same():
    inputs = make_inputs(torch.float32, torch.float32)
    with torch.no_grad():
        got = feed_forward(*inputs)
    assert torch.equal(got, feed_forward(*inputs))


def test_tiles_of_rows_do_not_matter(monkeypatch):
    inputs = make_inputs(torch.float64, torch.float64)
    monkeypatch.setattr("plait.kernels.feed_forward.TILE_TOKENS", 5)
    with torch.no_grad():
        got = feed_forward(*inputs)
    assert_close("feed_forward", torch.float64, "y", got, feed_forward(*inputs))


def test_linear_casts_weight_and_bias_to_the_activations():
    x, up, _, up_bias, _ = make_inputs(torch.bfloat16, torch.float32)
    y = linear(x, up, up_bias)
    assert y.dtype == torch.bfloat16
    assert torch.autograd.grad(y.sum(), up)[0].dtype == torch.float32


@pytest.mark.parametrize("has_bfloat16", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [7, 63, 64, 200])
@pytest.mark.parametrize("shape", ["flat", "batched", "strided"])
def test_linear_of_many_rows(rows, shape, dtype, has_bfloat16, monkeypatch):
    monkeypatch.setattr(processor, "_multiplies_bfloat16", lambda: has_bfloat16)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, 14, generator=generator).to(dtype)
    x = {"flat": x[:, 0].clone(), "batched": x, "strided": x[..., :7]}[shape].requires_grad_()
    weight = torch.randn(11, x.shape[-1], generator=generator).to(dtype).requires_grad_()
    bias = torch.randn(11, generator=generator).to(dtype).requires_grad_()
    inputs = x, weight, bias
    wide = [t.detach().double().requires_grad_() for t in inputs]
    got, want = linear(*inputs), torch.einsum("...d,fd->...f", *wide[:2]) + wide[2]
    grad = (torch.randint(-8, 9, want.shape, generator=generator) / 8).to(dtype)
    assert_close("feed_forward", dtype, "y", got, want)
    grads = torch.autograd.grad(got, inputs, grad), torch.autograd.grad(want, wide, grad.double())
    for name, like, g, w in zip(("x", "weight", "bias"), inputs, *grads, strict=True):
        assert g.dtype == like.dtype
        assert_close("feed_forward", dtype, name, g, w)


def test_linear_leaves_frozen_weights_without_gradient():
    x, weight = torch.randn(80, 4, requires_grad=True), torch.randn(3, 4)
    assert torch.allclose(torch.autograd.grad(linear(x, weight).sum(), x)[0], weight.sum(0))
