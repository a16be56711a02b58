"""The causal convolution by way of the native kernel: `conv` is the door and explains it.

Over flat tokens (T, Ch); the states before and after are rows (S (W-1), Ch).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from plait.kernels import native
from plait.kernels.documents import Documents, bounds_tensor

_TAPS = 4  # of native/conv.cpp


def takes(x: Tensor, taps: Tensor) -> bool:
    """Say whether the native form may compute this convolution."""
    return len(taps) == _TAPS and native.takes(x) and native.takes(taps, dtypes=(torch.float32,))


class Inputs(NamedTuple):
    """What both calls begin with."""

    x: Tensor
    taps: Tensor
    bias: Tensor
    before: Tensor

    def call(self, name: str, documents: Documents, *others: Tensor | int) -> None:
        """Call a kernel."""
        x, taps, bias, before = self
        bounds = documents.derived(bounds_tensor)
        sizes = x.stride(0), x.shape[1], bounds, len(bounds) - 1
        native.call(name, x.dtype, x, before, taps, bias, *sizes, *others)


def forward(inputs: Inputs, documents: Documents) -> tuple[Tensor, Tensor]:
    """Return the activations and the states after."""
    y, after = native.empty_like(inputs.x), native.empty_like(inputs.before)
    inputs.call("conv_forward", documents, y, after)
    return y, after


def backward(
    inputs: Inputs, documents: Documents, dy: Tensor, dafter: Tensor, dx: Tensor
) -> Inputs:
    """Return the gradients of the inputs; that of x goes into dx (T, Ch)."""
    gradients = Inputs(dx, *(native.empty_like(t) for t in inputs[1:]))
    strides = dy.stride(0), dx.stride(0)
    into = dx, gradients.before, gradients.taps, gradients.bias
    inputs.call("conv_backward", documents, dy, dafter, *into, *strides)
    return gradients


def differentiable(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Return the activations and the states after for x, taps, bias, before and documents."""
    return _Conv.apply(*arguments)  # pyright: ignore


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, taps: Tensor, bias: Tensor, before: Tensor, documents: Documents
    ) -> tuple[Tensor, Tensor]:
        inputs = Inputs(native.rows(x), taps, bias, before.contiguous())
        ctx.documents = documents
        ctx.save_for_backward(*inputs)
        return forward(inputs, documents)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dafter: Tensor) -> tuple[Tensor | None, ...]:
        inputs = Inputs(*ctx.saved_tensors)
        dx = native.empty_like(inputs.x)
        dafter = dafter.contiguous()
        return *backward(inputs, ctx.documents, native.rows(dy), dafter, dx), None
