"""Cross-entropy of a large vocabulary without the logits of a whole sequence."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def chunked_cross_entropy(
    hidden: Float[Tensor, "T D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " T"],
    weights: Float[Tensor, " T"],
    chunk_tokens: int = 1024,
) -> Float[Tensor, ""]:
    """Return the weighted sum of every token's negative log-likelihood."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    total = hidden.new_zeros((), dtype=dtype)

    def piece(h, w, t, m):
        logits = F.linear(h, w.to(h.dtype)).to(dtype)
        return (F.cross_entropy(logits, t, reduction="none") * m.to(dtype)).sum()

    for i in range(0, hidden.shape[0], chunk_tokens):
        s = slice(i, i + chunk_tokens)
        total = total + checkpoint(
            piece, hidden[s], weight, targets[s], weights[s], use_reentrant=False
        )
    return total
