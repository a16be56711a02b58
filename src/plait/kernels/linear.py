"""Linear maps whose weights may be kept wider than the activations.

`torch.nn.functional.linear`, except where that is slow: for float32 on a CPU it calls MKL, which
runs at a part of its speed on processors of other makers and on widths that are no multiple of its
tiles. oneDNN, which comes with PyTorch too, is faster there for the forward product and for the
gradient of the input, MKL for that of the weight; with many rows each gets what it does best.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# rows from which the better product is worth the call; a decoding step has fewer
_MANY_ROWS = 64
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
    rows = x.numel() // max(x.shape[-1], 1)
    if not _prefers_onednn(x, rows):
        return F.linear(x, weight, bias)
    y: Tensor = _Linear.apply(x.reshape(rows, x.shape[-1]), weight, bias)  # pyright: ignore
    return y.view(*x.shape[:-1], len(weight))


def multiply(
    x: Float[Tensor, "rows D"], weight: Float[Tensor, "F D"], bias: Float[Tensor, " F"] | None
) -> Float[Tensor, "rows F"]:
    """Return x weight^T + bias by the faster library, all in one dtype and without autograd."""
    if not _prefers_onednn(x, len(x)):
        return F.linear(x, weight, bias)
    x, weight = x.contiguous(), weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _prefers_onednn(x: Tensor, rows: int) -> bool:
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return on_cpu and _HAS_ONEDNN and rows >= _MANY_ROWS


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
            torch.mm(dy.t(), x) if for_weight else None,
            dy.sum(0) if for_bias else None,
        )
