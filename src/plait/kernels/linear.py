"""Linear maps whose weights may be kept wider than the activations.

`torch.nn.functional.linear`, except where that is slow on a CPU. For float32 it calls MKL, which
runs at a part of its speed on processors of other makers and on widths that are no multiple of its
tiles. oneDNN, which comes with PyTorch too, is faster there for the forward product and for the
gradient of the input, MKL for that of the weight; with many rows each gets what it does best. For
bfloat16, see `processor`. The few rows of a decoding step are bound by reading the weight, which
the native kernel does at two to three times the speed of either.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from plait.kernels import native
from plait.kernels.processor import product_dtype

# rows up to which reading the weight is what takes the time
_ROWS_TO_STREAM = 16
# rows from which oneDNN, and widening bfloat16 where it is slow, are worth their overhead
_ROWS_FOR_ONEDNN, _ROWS_TO_WIDEN = 64, 8
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)


def linear(
    x: Float[Tensor, "*batch D"],
    weight: Float[Tensor, "F D"],
    bias: Float[Tensor, " F"] | None = None,
) -> Float[Tensor, "*batch F"]:
    """Return x weight^T + bias, the weight and bias cast to the activations' dtype.

    Weights may so be float32 masters under bfloat16 activations; their gradients are float32 again.
    """
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    # As rows: of a batch that is not in one piece torch would multiply each item by itself.
    rows = x.reshape(x.numel() // max(x.shape[-1], 1), x.shape[-1])
    if _streams(rows, weight, bias):
        y = _stream(rows, weight, bias)
    elif _widens(rows) or _prefers_onednn(rows):
        y: Tensor = _Linear.apply(rows, weight, bias)  # pyright: ignore
    else:
        y = F.linear(rows, weight, bias)
    return y.view(*x.shape[:-1], len(weight))


def multiply(
    x: Float[Tensor, "rows D"], weight: Float[Tensor, "F D"], bias: Float[Tensor, " F"] | None
) -> Float[Tensor, "rows F"]:
    """Return x weight^T + bias by the faster way, all in one dtype and without autograd."""
    if _streams(x, weight, bias):
        return _stream(x, weight, bias)
    if _widens(x):
        wide = [None if t is None else t.float() for t in (weight, bias)]
        return multiply(x.float(), *wide).to(x.dtype)  # pyright: ignore
    if not _prefers_onednn(x):
        return F.linear(x, weight, bias)
    x, weight = x.contiguous(), weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def weight_gradient(
    dy: Float[Tensor, "rows F"], x: Float[Tensor, "rows D"]
) -> Float[Tensor, "F D"]:
    """Return dy^T x by the faster way, without autograd."""
    if _widens(x):
        return torch.mm(dy.float().t(), x.float()).to(x.dtype)
    return torch.mm(dy.t(), x)


def _streams(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    few = 0 < len(x) <= _ROWS_TO_STREAM and weight.dtype == x.dtype and weight.is_contiguous()
    if not few or not native.takes(x, weight, bias):
        return False
    wanted = (t is not None and t.requires_grad for t in (x, weight, bias))
    return not (torch.is_grad_enabled() and any(wanted))


def _stream(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x, bias = x.contiguous(), None if bias is None else bias.contiguous()
    y = x.new_empty(len(x), len(weight))
    native.call("gemv", x.dtype, x, weight, bias, y, *x.shape, len(weight))
    return y


def _widens(x: Tensor) -> bool:
    return len(x) >= _ROWS_TO_WIDEN and product_dtype(x.dtype, x.device) != x.dtype


def _prefers_onednn(x: Tensor) -> bool:
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return on_cpu and _HAS_ONEDNN and len(x) >= _ROWS_FOR_ONEDNN


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            multiply(dy, weight.t(), None) if for_x else None,
            weight_gradient(dy, x) if for_weight else None,
            dy.sum(0) if for_bias else None,
        )
