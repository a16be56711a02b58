"""The feed-forward layer: a squared ReLU between two linear maps.

The layer between them is the widest of the model, so it is passed over as seldom as possible: what
backward keeps of it is h = relu(up(x)) alone, and the derivative of its square, 2 h, is zero by
itself wherever the ReLU was.

    h = relu(x U^T + b);   y = h^2 D^T + c
    dh = dy (2 D) * h;     dU = dh^T x;     dD = dy^T h^2;     dx = dh U
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from plait.kernels.linear import multiply, weight_gradient
from plait.kernels.tiles import TILE_TOKENS


def feed_forward(
    x: Float[Tensor, "*batch D"],
    up: Float[Tensor, "F D"],
    down: Float[Tensor, "D F"],
    up_bias: Float[Tensor, " F"] | None = None,
    down_bias: Float[Tensor, " D"] | None = None,
) -> Float[Tensor, "*batch D"]:
    """Return down(relu(up(x))^2), each linear with its bias if it has one.

    Numerics: weights are cast to x.dtype, in which everything is computed and returned.
    """
    rows = x.reshape(x.numel() // x.shape[-1], x.shape[-1])
    weights = [None if t is None else t.to(x.dtype) for t in (up, down, up_bias, down_bias)]
    wanted = (t is not None and t.requires_grad for t in (rows, *weights))
    if torch.is_grad_enabled() and any(wanted):
        y: Tensor = _FeedForward.apply(rows, *weights)  # pyright: ignore
    else:
        parts = [_forward(part, *weights)[0] for part in rows.split(TILE_TOKENS)]  # pyright: ignore
        y = parts[0] if len(parts) == 1 else torch.cat(parts)
    return y.view(x.shape)


def _forward(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    *,
    keep: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return y and h; h is overwritten by its square unless it is to be kept."""
    h = multiply(x, up, up_bias).relu_()
    return multiply(h * h if keep else h.square_(), down, down_bias), h


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        up: Tensor,
        down: Tensor,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
    ) -> Tensor:
        y, h = _forward(x, up, down, up_bias, down_bias, keep=True)
        ctx.save_for_backward(x, up, down, h)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, up, down, h = ctx.saved_tensors
        for_x, for_up, for_down, for_up_bias, for_down_bias = ctx.needs_input_grad
        ddown = weight_gradient(dy, h * h) if for_down else None
        dh = multiply(dy, 2 * down.t(), None).mul_(h)
        return (
            multiply(dh, up.t(), None) if for_x else None,
            weight_gradient(dh, x) if for_up else None,
            ddown,
            dh.sum(0) if for_up_bias else None,
            dy.sum(0) if for_down_bias else None,
        )
