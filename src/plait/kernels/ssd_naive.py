"""The SSD recurrence one token after another: the arbiter, never the fast way.

Written straight from the definition, in the dtype that the inputs promote to (float32 at least,
float64 stays float64), so that it can judge every other form of the operation, gradients included.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class SSDOutput(NamedTuple):
    """What a scan returns: outputs in the dtype of x, and each sequence's state at its end."""

    y: Float[Tensor, "B T H P"]
    final_state: Float[Tensor, "S H P N"]


def ssd_scan_naive(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    A: Float[Tensor, " H"],
    B: Float[Tensor, "B T G N"],
    C: Float[Tensor, "B T G N"],
    D: Float[Tensor, " H"],
    *,
    initial_state: Float[Tensor, "S H P N"] | None = None,
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
) -> SSDOutput:
    """Run the selective state-space recurrence token by token.

    h <- exp(dt A) h + dt x B^T;   y = h C + D x      head j reads group j // (H/G) of B and C

    Without `cu_seqlens` each of the B rows is a sequence (S = B); with it the single row holds S
    packed sequences, each starting from its own initial state (zero if not given).
    Numerics: the promoted dtype of the inputs, float32 at least; y returns in x.dtype.
    Source: arXiv 2405.21060, equation 1 with A scalar times identity.
    """
    dtype = torch.promote_types(torch.promote_types(x.dtype, dt.dtype), torch.float32)
    repeats = x.shape[2] // B.shape[2]
    bounds = [0, x.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
    num_sequences = x.shape[0] if cu_seqlens is None else len(bounds) - 1
    if initial_state is None:
        initial_state = x.new_zeros(num_sequences, *x.shape[2:], B.shape[3], dtype=dtype)
    x_, dt_, A_, D_ = x.to(dtype), dt.to(dtype), A.to(dtype), D.to(dtype)
    B_ = B.to(dtype).repeat_interleave(repeats, dim=2)
    C_ = C.to(dtype).repeat_interleave(repeats, dim=2)
    outputs, states = [], []
    for document, (start, stop) in enumerate(pairwise(bounds)):
        rows = slice(None) if cu_seqlens is None else slice(document, document + 1)
        h = initial_state[rows].to(dtype)
        for t in range(start, stop):
            decay = torch.exp(dt_[:, t] * A_)[..., None, None]
            update = torch.einsum("bh,bhp,bhn->bhpn", dt_[:, t], x_[:, t], B_[:, t])
            h = decay * h + update
            outputs.append(torch.einsum("bhpn,bhn->bhp", h, C_[:, t]) + D_[:, None] * x_[:, t])
        states.append(h)
    y = torch.stack(outputs, dim=1) if outputs else x_
    return SSDOutput(y.to(x.dtype), torch.cat(states))
