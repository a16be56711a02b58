"""The SSD scan in chunks."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from plait.kernels.ssd_naive import SSDOutput


def ssd_scan(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    A: Float[Tensor, " H"],
    B: Float[Tensor, "B T G N"],
    C: Float[Tensor, "B T G N"],
    D: Float[Tensor, " H"],
    *,
    initial_state: Float[Tensor, "S H P N"] | None = None,
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    chunk_length: int | None = None,
) -> SSDOutput:
    """Run the selective state-space recurrence in chunks."""
    chunk_length = chunk_length or 32
    if cu_seqlens is None:
        return _scan_rows(x, dt, A, B, C, D, initial_state, chunk_length)
    bounds = cu_seqlens.tolist()
    parts = []
    for s, (i, j) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        h = None if initial_state is None else initial_state[s : s + 1]
        parts.append(_scan_rows(x[:, i:j], dt[:, i:j], A, B[:, i:j], C[:, i:j], D, h, chunk_length))
    return SSDOutput(torch.cat([p.y for p in parts], 1), torch.cat([p.final_state for p in parts]))


def _scan_rows(x, dt, A, B, C, D, initial_state, Q):
    b, T, H, P = x.shape
    G, N = B.shape[2:]
    R = H // G
    dtype = torch.promote_types(torch.promote_types(x.dtype, dt.dtype), torch.float32)
    out_dtype = x.dtype
    x, dt, A, B, C, D = (t.to(dtype) for t in (x, dt, A, B, C, D))
    pad = -T % Q
    K = (T + pad) // Q
    xg = F.pad(x, (0, 0, 0, 0, 0, pad)).view(b, K, Q, G, R, P).permute(0, 1, 3, 4, 2, 5)
    dtg = F.pad(dt, (0, 0, 0, pad)).view(b, K, Q, G, R).permute(0, 1, 3, 4, 2)  # b K G R Q
    Bg = F.pad(B, (0, 0, 0, 0, 0, pad)).view(b, K, Q, G, N).transpose(2, 3)
    Cg = F.pad(C, (0, 0, 0, 0, 0, pad)).view(b, K, Q, G, N).transpose(2, 3)
    cum = torch.cumsum(dtg * A.view(G, R, 1), dim=-1)
    mask = torch.ones(Q, Q, dtype=torch.bool, device=x.device).triu(1)
    L = (cum[..., :, None] - cum[..., None, :]).masked_fill(mask, -torch.inf).exp()
    M = (Cg @ Bg.transpose(-1, -2))[:, :, :, None] * L
    xdt = xg * dtg[..., None]
    y = M @ xdt
    states = (xdt * torch.exp(cum[..., -1:] - cum)[..., None]).transpose(-1, -2) @ Bg[:, :, :, None]
    decay = torch.exp(cum[..., -1])[..., None, None]
    h = x.new_zeros(b, G, R, P, N) if initial_state is None else initial_state.to(dtype)
    h = h.view(b, G, R, P, N)
    entering = []
    for k in range(K):
        entering.append(h)
        h = decay[:, k] * h + states[:, k]
    if entering:
        y = y + torch.exp(cum)[..., None] * (
            Cg[:, :, :, None] @ torch.stack(entering, 1).transpose(-1, -2)
        )
    y = y.permute(0, 1, 4, 2, 3, 5).reshape(b, K * Q, H, P)[:, :T] + D[:, None] * x
    return SSDOutput(y.to(out_dtype), h.reshape(b, H, P, N))
