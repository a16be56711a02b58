"""Causal grouped-query attention without positions."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def causal_attention(
    q: Float[Tensor, "B T Hq E"],
    k: Float[Tensor, "B T Hk E"],
    v: Float[Tensor, "B T Hk E"],
    *,
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
) -> Float[Tensor, "B T Hq E"]:
    """Let every token attend to itself and the earlier tokens of its own document."""
    if cu_seqlens is None:
        return _causal(q, k, v)
    bounds = cu_seqlens.tolist()
    return torch.cat(
        [
            _causal(q[:, i:j], k[:, i:j], v[:, i:j])
            for i, j in zip(bounds[:-1], bounds[1:], strict=True)
        ],
        dim=1,
    )


def _causal(q, k, v):
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
    )
    return out.transpose(1, 2)


def write_cache(
    key_cache: Float[Tensor, "S Hk capacity E"],
    value_cache: Float[Tensor, "S Hk capacity E"],
    k: Float[Tensor, "B T Hk E"],
    v: Float[Tensor, "B T Hk E"],
    lengths_before: Int[Tensor, " S"],
    *,
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
) -> None:
    """Write the new keys and values behind what each sequence holds, in place."""
    bounds = None if cu_seqlens is None else cu_seqlens.tolist()
    for s, before in enumerate(lengths_before.tolist()):
        row, i, j = (s, 0, k.shape[1]) if bounds is None else (0, bounds[s], bounds[s + 1])
        key_cache[s, :, before : before + j - i] = k[row, i:j].transpose(0, 1)
        value_cache[s, :, before : before + j - i] = v[row, i:j].transpose(0, 1)


def cached_attention(
    q: Float[Tensor, "B T Hq E"],
    key_cache: Float[Tensor, "S Hk capacity E"],
    value_cache: Float[Tensor, "S Hk capacity E"],
    lengths_before: Int[Tensor, " S"],
    *,
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
) -> Float[Tensor, "B T Hq E"]:
    """Let each new token attend to its sequence's cache up to and including itself.

    The new tokens' keys and values are already in the cache (`write_cache`), at positions
    lengths_before[s] and on. Row b (or, with cu_seqlens, document s) uses cache row b (or s).
    """
    bounds = None if cu_seqlens is None else cu_seqlens.tolist()
    outputs = []
    for s, before in enumerate(lengths_before.tolist()):
        row, i, j = (s, 0, q.shape[1]) if bounds is None else (0, bounds[s], bounds[s + 1])
        total = before + j - i
        mask = torch.ones(j - i, total, dtype=torch.bool, device=q.device).tril(before)
        out = F.scaled_dot_product_attention(
            q[row : row + 1, i:j].transpose(1, 2),
            key_cache[s : s + 1, :, :total].to(q.dtype),
            value_cache[s : s + 1, :, :total].to(q.dtype),
            attn_mask=mask,
            enable_gqa=True,
        )
        outputs.append(out.transpose(1, 2))
    return torch.cat(outputs, dim=0 if bounds is None else 1)
