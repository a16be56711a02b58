"""RMS norms: the plain one in front of every layer, and Mamba's gated one over groups of channels.

Both are the same function: a row (or each of its groups) is scaled to unit mean square, then by a
weight; the gated norm multiplies by silu(z) *before* that. As a chain of torch operations it would
stream its arguments through memory a dozen times forward and backward; here blocks of rows stay in
cache, and backward keeps only the inputs and one factor per row and group.

    u = y silu(z);   r = (mean(u^2) + eps)^-1/2;   n = u r;   out = n w

    dn = dout w;   du = r (dn - n mean(dn n));   dy = du silu(z);   dz = du y silu'(z)
    dw = sum dout n
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from plait.kernels import norm_native

# elements in a block of rows: with its temporaries it stays in a core's cache
_BLOCK_ELEMENTS = 1 << 18


def rms_norm(
    x: Float[Tensor, "*batch D"], weight: Float[Tensor, " D"], eps: float
) -> Float[Tensor, "*batch D"]:
    """Scale each row to unit mean square, then by the weight.

    Numerics: computes in float32 (float64 stays), the weight multiplied in it; returns in x.dtype.
    """
    return _normalise(x, None, weight, eps, 1)


def gated_rms_norm(
    y: Float[Tensor, "*batch D"],
    z: Float[Tensor, "*batch D"],
    weight: Float[Tensor, " D"],
    eps: float,
    num_groups: int,
) -> Float[Tensor, "*batch D"]:
    """Gate y by silu(z), scale each group of channels to unit mean square, then by the weight.

    Numerics: computes in float32 (float64 stays), the weight multiplied in it; returns in y.dtype.
    Raises: ValueError if D is no multiple of `num_groups`.
    Source: agrees with mamba_ssm's RMSNormGated with norm_before_gate false.
    """
    if y.shape[-1] % num_groups:
        raise ValueError(f"{y.shape[-1]} channels are no multiple of {num_groups} groups")
    return _normalise(y, z, weight, eps, num_groups)


def _normalise(y: Tensor, z: Tensor | None, weight: Tensor, eps: float, num_groups: int) -> Tensor:
    width = y.shape[-1]
    rows = y.numel() // width
    flat = y.reshape(rows, width), None if z is None else z.reshape(rows, width)
    arguments = (*flat, weight)
    if norm_native.takes(*arguments):
        out = norm_native.differentiable(*arguments, eps, num_groups)
    elif torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments):
        out = _Norm.apply(*arguments, eps, num_groups)
    else:
        out = _forward(*arguments, eps, num_groups)[0]
    return out.view(y.shape)  # pyright: ignore


def _forward(
    y: Tensor, z: Tensor | None, weight: Tensor, eps: float, num_groups: int
) -> tuple[Tensor, Tensor]:
    """Return the output (rows, D) and r (rows, G, 1)."""
    dtype = torch.promote_types(y.dtype, torch.float32)
    weight = weight.to(dtype)
    out = torch.empty_like(y, memory_format=torch.contiguous_format)
    scales = y.new_empty(len(y), num_groups, 1, dtype=dtype)
    for rows in _blocks(y):
        u = y[rows].to(dtype)
        if z is not None:
            u = F.silu(z[rows].to(dtype)).mul_(u)
        u = u.unflatten(1, (num_groups, -1))
        norm = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        r = torch.rsqrt((norm * norm).div_(u.shape[2]).add_(eps), out=scales[rows])
        torch.mul((u * r).flatten(1), weight, out=out[rows])
    return out, scales


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, z: Tensor | None, weight: Tensor, eps: float, num_groups: int
    ) -> Tensor:
        out, scales = _forward(y, z, weight, eps, num_groups)
        ctx.save_for_backward(y, z, weight, scales)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        y, z, weight, scales = ctx.saved_tensors
        dtype, num_groups = scales.dtype, scales.shape[1]
        dweight = weight.new_zeros(weight.shape, dtype=dtype)
        weight_ = weight.to(dtype)
        dy = torch.empty_like(y, memory_format=torch.contiguous_format)
        dz = None if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)
        for rows in _blocks(y):
            r, g, u = scales[rows], dout[rows].to(dtype), y[rows].to(dtype)
            before_gate, gate, z_ = u, None, None if z is None else z[rows].to(dtype)
            if z_ is not None:
                gate = F.silu(z_)
                u = u * gate
            n = u.unflatten(1, (num_groups, -1)) * r
            dweight += (n.flatten(1) * g).sum(0)
            dn = (g * weight_).view(n.shape)
            mean = (dn * n).sum(-1, keepdim=True).div_(n.shape[2])
            du = dn.addcmul_(n, mean, value=-1).mul_(r).flatten(1)
            dy[rows] = du if gate is None else du * gate
            if dz is not None:
                dz[rows] = torch.ops.aten.silu_backward(du.mul_(before_gate), z_)
        return dy, dz, dweight.to(weight.dtype), None, None


def _blocks(y: Tensor) -> list[slice]:
    rows, width = y.shape
    length = max(_BLOCK_ELEMENTS // width, 16) if y.device.type == "cpu" else max(rows, 1)
    return [slice(start, start + length) for start in range(0, rows, length)]
