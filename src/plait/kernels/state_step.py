"""The SSD recurrence for one token: what decoding does."""

import torch
from jaxtyping import Float
from torch import Tensor


def ssd_step(
    x: Float[Tensor, "B H P"],
    dt: Float[Tensor, "B H"],
    A: Float[Tensor, " H"],
    B: Float[Tensor, "B G N"],
    C: Float[Tensor, "B G N"],
    D: Float[Tensor, " H"],
    state: Float[Tensor, "B H P N"],
) -> Float[Tensor, "B H P"]:
    """Advance the SSD state by one token in place and read it out."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    (b, H, P), (_, G, N) = x.shape, B.shape
    dt = dt.to(dtype)
    xw = x.to(dtype)
    update = (xw * dt[..., None]).view(b, G, -1, 1) * B.to(dtype)[:, :, None]
    decay = torch.exp(dt * A.to(dtype))
    state.mul_(decay[..., None, None]).add_(update.view(b, H, P, N))
    y = state.to(dtype).view(b, G, -1, N) @ C.to(dtype)[..., None]
    return (y.view(b, H, P) + D.to(dtype)[:, None] * xw).to(x.dtype)
