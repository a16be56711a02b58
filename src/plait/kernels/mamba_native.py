"""What lies between a Mamba layer's two linear maps, as one differentiable step for training.

    z, xBC, dt = split(projected);   x, B, C = split(silu(conv(xBC)))
    y = scan(x, softplus(dt + dt_bias), -exp(A_log), B, C, D);   out = norm(y silu(z)) weight

It is the composition of `conv`, `ssd` and `gated_norm`, which is also what it is tested against. As
one step its gradients are written where they belong in the gradient of the projection, where
autograd would gather them from five tensors, and nothing but native kernels touches a whole layer.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from plait.kernels import conv_native, native, norm_native, ssd_native
from plait.kernels.documents import Documents


class Sizes(NamedTuple):
    """H, P, G and N, and the norm's epsilon."""

    heads: int
    head_dim: int
    groups: int
    state: int
    eps: float

    @property
    def widths(self) -> tuple[int, int, int]:
        """Of x (and z), B and C."""
        return self.heads * self.head_dim, self.groups * self.state, self.groups * self.state


class Weights(NamedTuple):
    """The layer's own parameters."""

    taps: Tensor  # (Ch, W)
    conv_bias: Tensor | None  # (Ch)
    dt_bias: Tensor  # (H)
    A_log: Tensor  # (H)
    D: Tensor  # (H)
    norm: Tensor  # (H P)


def takes(projected: Tensor, weights: Weights) -> bool:
    """Say whether the native form may compute (B, T, ...): float32 weights, gradients wanted."""
    return (
        projected.ndim == 3
        and torch.is_grad_enabled()
        and projected.requires_grad
        and conv_native.takes(projected, weights.taps.t())
        and native.takes(*weights, dtypes=(torch.float32,))
    )


def mix(projected: Tensor, weights: Weights, sizes: Sizes, documents: Documents) -> Tensor:
    """Return (B, T, H P) for the input projection (B, T, 2 H P + 2 G N + H), from empty states.

    Numerics: those of `causal_conv`, `ssd_scan` and `gated_rms_norm`; returns in projected.dtype.
    """
    return _Mix.apply(projected, *weights, sizes, documents)  # pyright: ignore


class _Parts(NamedTuple):
    """Views of a projection or its gradient, flat over tokens."""

    z: Tensor
    xbc: Tensor
    dt: Tensor

    @classmethod
    def of(cls, projected: Tensor, sizes: Sizes) -> "_Parts":
        flat = projected.view(-1, projected.shape[-1])
        return cls(*flat.split([sizes.widths[0], sum(sizes.widths), sizes.heads], 1))


class _Steps(NamedTuple):
    """The inputs of the convolution and the scan."""

    conv: conv_native.Inputs
    before_softplus: Tensor

    @classmethod
    def of(cls, parts: _Parts, weights: Weights, documents: Documents) -> "_Steps":
        taps = weights.taps.t().contiguous()
        channels = taps.shape[1]
        bias = taps.new_zeros(channels) if weights.conv_bias is None else weights.conv_bias
        before = parts.xbc.new_zeros(len(documents) * (len(taps) - 1), channels)
        conv = conv_native.Inputs(parts.xbc, taps, bias, before)
        return cls(conv, parts.dt.float() + weights.dt_bias)


def _scan_inputs(
    convolved: Tensor, dt: Tensor, weights: Weights, sizes: Sizes, documents: Documents
) -> ssd_native.Inputs:
    x, B, C = convolved.split(sizes.widths, 1)
    vectors = -weights.A_log.exp(), weights.D.contiguous()
    chunks = documents.derived(ssd_native.chunks_of)
    return ssd_native.Inputs(x, B, C, dt, *vectors, chunks, sizes[:4])


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, *arguments: Any) -> Tensor:
        *given, sizes, documents = arguments
        weights, projected = Weights(*given), projected.contiguous()
        parts = _Parts.of(projected, sizes)
        steps = _Steps.of(parts, weights, documents)
        convolved, _ = conv_native.forward(steps.conv, documents)
        dt = F.softplus(steps.before_softplus)
        inputs = _scan_inputs(convolved, dt, weights, sizes, documents)
        y, _, kept = ssd_native.forward(inputs, None, keep=True)
        out, scales = norm_native.forward(y, parts.z, weights.norm, sizes.eps, sizes.groups)
        ctx.save_for_backward(projected, convolved, dt, y, *kept, scales, *weights)
        ctx.sizes, ctx.documents = sizes, documents
        return out.view(*projected.shape[:-1], out.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        projected, convolved, dt, y, y_wide, entering, scales, *given = ctx.saved_tensors
        sizes, documents, weights = ctx.sizes, ctx.documents, Weights(*given)
        gradient = native.empty_like(projected)
        parts, into = _Parts.of(projected, sizes), _Parts.of(gradient, sizes)
        steps = _Steps.of(parts, weights, documents)

        dout = native.rows(dout.reshape(y.shape))
        dy, dnorm = norm_native.backward(y, parts.z, weights.norm, scales, dout, into.z)
        inputs = _scan_inputs(convolved, dt, weights, sizes, documents)
        dconvolved = native.empty_like(convolved)
        kept = ssd_native.Kept(y_wide, entering)
        dx, dB, dC = dconvolved.split(sizes.widths, 1)
        scan = ssd_native.backward(inputs, kept, dy, None, (dx, dB, dC))
        dsteps = scan.dt.mul_(steps.before_softplus.sigmoid_())
        into.dt.copy_(dsteps)
        dafter = torch.zeros_like(steps.conv.before)
        conv = conv_native.backward(steps.conv, documents, dconvolved, dafter, into.xbc)
        dbias = None if weights.conv_bias is None else conv.bias
        dA_log = scan.A * inputs.A
        dweights = conv.taps.t(), dbias, dsteps.sum(0), dA_log, scan.D, dnorm
        return gradient, *dweights, None, None
