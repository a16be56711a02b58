import pytest
import torch

from plait.kernels import native
from plait.kernels.linear import linear
from plait.kernels.tolerances import assert_close

needs_native = pytest.mark.skipif(
    native.library().functions is None, reason=f"native kernels are {native.library().status}"
)


def make(rows, width, columns, dtype, *, bias=True):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, width, generator=generator) for n in (rows, columns))
    b = torch.randn(columns, generator=generator) if bias else None
    return [None if t is None else t.to(dtype) for t in (x, weight, b)]


def product(x, weight, bias):
    y = x.double() @ weight.double().t()
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 63, 257])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 16, 70])
@torch.inference_mode()
def test_agrees_with_the_product(rows, width, dtype):
    x, weight, bias = make(rows, width, 27, dtype, bias=rows % 2 == 1)
    want = product(x, weight, bias)
    assert_close("linear", dtype, "y", linear(x, weight, bias), want)
    with native.off():
        assert_close("linear", dtype, "y in torch", linear(x, weight, bias), want)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_result_depends_on_neither_its_neighbours_nor_the_threads(dtype):
    x, weight, bias = make(16, 130, 100, dtype)
    whole = linear(x, weight, bias)
    assert torch.equal(whole, torch.cat([linear(row, weight, bias) for row in x.split(1)]))
    assert torch.equal(whole, torch.cat([linear(rows, weight, bias) for rows in x.split(5)]))
    torch.set_num_threads(3)
    assert torch.equal(whole, linear(x, weight, bias))


@needs_native
def test_not_a_number_stays_one():
    for value in (torch.nan, -torch.nan, torch.inf):
        x, weight, _ = make(1, 40, 3, torch.bfloat16)
        x[0, 5] = value
        assert not linear(x, weight).isfinite().any()


def test_few_rows_have_gradients():
    x, weight, bias = (t.requires_grad_() for t in make(3, 5, 4, torch.float64))
    assert torch.autograd.gradcheck(linear, (x, weight, bias))
    x, weight, bias = (t.requires_grad_() for t in make(3, 5, 4, torch.float32))
    linear(x, weight, bias).sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert bias.grad is not None
