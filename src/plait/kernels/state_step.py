"""The SSD recurrence for one token: what decoding does.

The state is far larger than everything else a step touches, so its cost is how often the state
passes through memory: once to decay, once to add the outer product, once to be read out. dt and A
are scalars per head and stay so; B and C serve all heads of a group at once.
"""

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
    """Advance the SSD state by one token per row, in place, and read it out.

    state <- exp(dt A) state + dt x B^T;   y = state C + D x      head j reads group j // (H/G)

    dt is after bias, softplus and clamp; A is negative.
    Numerics: computes in the state's dtype if that is float32 or float64; a shorter state is
    widened for the computation and rounded once when written back. y returns in x.dtype.
    Raises: ValueError if H is not a multiple of G.
    Source: arXiv 2405.21060; agrees with mamba_ssm's selective_state_update.
    """
    (num_rows, H, P), (_, G, N) = x.shape, B.shape
    if H % G:
        raise ValueError(f"{H} heads are no multiple of {G} groups")
    dtype = torch.promote_types(torch.promote_types(x.dtype, dt.dtype), torch.float32)
    dtype = torch.promote_types(dtype, state.dtype)
    x_, dt, A = x.to(dtype), dt.to(dtype), A.to(dtype)
    B, C = B.to(dtype).reshape(-1, 1, N), C.to(dtype).reshape(-1, 1, N)

    wide = state.to(dtype)
    grouped = wide.view(num_rows * G, (H // G) * P, N)
    wide.mul_(torch.exp(dt * A)[..., None, None])
    grouped.addcmul_((x_ * dt[..., None]).view(num_rows * G, -1, 1), B)
    # the row vector goes first: as the second factor it would take a path that is many times slower
    y = torch.bmm(C, grouped.transpose(1, 2)).view(num_rows, H, P)
    if wide is not state:
        state.copy_(wide)
    return torch.addcmul(y, x_, D.to(dtype)[:, None]).to(x.dtype)
