"""RMS norms: plain, and Mamba's gated one over groups of channels."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def rms_norm(
    x: Float[Tensor, "*batch D"], weight: Float[Tensor, " D"], eps: float
) -> Float[Tensor, "*batch D"]:
    """Scale each row to unit mean square, then by the weight."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(dtype), (x.shape[-1],), weight.to(dtype), eps).to(x.dtype)


def gated_rms_norm(
    y: Float[Tensor, "*batch D"],
    z: Float[Tensor, "*batch D"],
    weight: Float[Tensor, " D"],
    eps: float,
    num_groups: int,
) -> Float[Tensor, "*batch D"]:
    """Gate y by silu(z), then normalise each group of channels, then apply the weight."""
    dtype = torch.promote_types(y.dtype, torch.float32)
    gated = y.to(dtype) * F.silu(z.to(dtype))
    grouped = gated.unflatten(-1, (num_groups, -1))
    normed = F.rms_norm(grouped, (grouped.shape[-1],), None, eps).flatten(-2)
    return (normed * weight.to(dtype)).to(y.dtype)
