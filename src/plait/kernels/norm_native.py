"""The norms by way of the native kernel: `gated_norm` is the door and explains them.

Over flat rows (T, D); z is None for the plain norm.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from plait.kernels import native


def takes(y: Tensor, z: Tensor | None, weight: Tensor) -> bool:
    """Say whether the native form may compute this norm."""
    return native.takes(y, z, weight) and (z is None or z.dtype == y.dtype)


def forward(
    y: Tensor, z: Tensor | None, weight: Tensor, eps: float, num_groups: int
) -> tuple[Tensor, Tensor]:
    """Return the output and the factor of each row and group (T, G)."""
    out = native.empty_like(y)
    scales = y.new_empty(len(y), num_groups, dtype=torch.float32)
    weight = weight.float().contiguous()
    native.call("norm_forward", y.dtype, *_inputs(y, z, weight, scales), out, eps)
    return out, scales


def backward(
    y: Tensor,
    z: Tensor | None,
    weight: Tensor,
    scales: Tensor,
    dout: Tensor,
    dz: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of y and weight; that of z goes into dz (T, D), if given."""
    wide = weight.float().contiguous()
    dy, dweight = native.empty_like(y), native.empty_like(wide)
    strides = dout.stride(0), 0 if dz is None else dz.stride(0)
    inputs = _inputs(y, z, wide, scales)
    native.call("norm_backward", y.dtype, *inputs, dout, dy, dz, dweight, *strides)
    return dy, dweight.to(weight.dtype)


def _inputs(
    y: Tensor, z: Tensor | None, weight: Tensor, scales: Tensor
) -> tuple[Tensor | int | None, ...]:
    (rows, width), groups = y.shape, scales.shape[1]
    strides = y.stride(0), 0 if z is None else z.stride(0)
    return y, z, weight, scales, *strides, rows, groups, width // groups


def differentiable(*arguments: Any) -> Tensor:
    """Return the output for y, z, weight, eps and num_groups."""
    return _Norm.apply(*arguments)  # pyright: ignore


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, z: Tensor | None, weight: Tensor, eps: float, num_groups: int
    ) -> Tensor:
        y, z = native.rows(y), None if z is None else native.rows(z)
        out, scales = forward(y, z, weight, eps, num_groups)
        ctx.save_for_backward(y, z, weight, scales)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        y, z, weight, scales = ctx.saved_tensors
        dz = None if z is None else native.empty_like(z)
        dy, dweight = backward(y, z, weight, scales, native.rows(dout), dz)
        return dy, dz, dweight, None, None
