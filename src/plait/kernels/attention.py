"""Causal grouped-query attention without position encoding, over documents or over a cache.

The arithmetic is PyTorch's fused attention, whose memory is linear in the number of tokens; this
module only decides how to ask for it. Packed documents are attended one by one, so there is never a
mask over a whole row. Over a cache, the query heads that share a key/value head are folded into the
query axis: the keys and values are then read once and never repeated, which is what decoding spends
its time on.

Scores are scaled by E**-0.5. Query head j reads key/value head j // (Hq/Hk).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from plait.kernels.documents import Documents
from plait.kernels.processor import product_dtype

# new tokens attended at once over a cache: bounds the mask to this many rows
_QUERY_TILE = 256


def causal_attention(
    q: Float[Tensor, "B T Hq E"],
    k: Float[Tensor, "B T Hk E"],
    v: Float[Tensor, "B T Hk E"],
    *,
    cu_seqlens: Int[Tensor, " S_plus_1"] | Documents | None = None,
) -> Float[Tensor, "B T Hq E"]:
    """Let every token attend to itself and the earlier tokens of its own row or packed document.

    Numerics: those of torch's scaled_dot_product_attention; returns in q.dtype.
    Raises: ValueError if `cu_seqlens` does not fit the row.
    """
    if cu_seqlens is None:
        return _causal(q, k, v)
    spans = Documents.of(cu_seqlens, q).spans
    parts = [_causal(q[:, i:j], k[:, i:j], v[:, i:j]) for i, j in spans if i < j]
    return torch.cat(parts, dim=1) if parts else q


def write_cache(
    key_cache: Float[Tensor, "S Hk capacity E"],
    value_cache: Float[Tensor, "S Hk capacity E"],
    k: Float[Tensor, "B T Hk E"],
    v: Float[Tensor, "B T Hk E"],
    lengths_before: Int[Tensor, " S"],
    *,
    cu_seqlens: Int[Tensor, " S_plus_1"] | Documents | None = None,
) -> None:
    """Write new keys and values behind the `lengths_before[s]` that each cache row holds, in place.

    Row b of k and v (or, with `cu_seqlens`, document s) belongs to cache row b (or s).
    """
    before = lengths_before.tolist()
    if cu_seqlens is None and len(set(before)) == 1:
        place = slice(before[0], before[0] + k.shape[1])
        key_cache[:, :, place] = k.transpose(1, 2)
        value_cache[:, :, place] = v.transpose(1, 2)
    elif cu_seqlens is None:
        for row, length in enumerate(before):
            place = slice(length, length + k.shape[1])
            key_cache[row, :, place] = k[row].transpose(0, 1)
            value_cache[row, :, place] = v[row].transpose(0, 1)
    else:
        for row, (start, stop) in enumerate(Documents.of(cu_seqlens, k).spans):
            place = slice(before[row], before[row] + stop - start)
            key_cache[row, :, place] = k[0, start:stop].transpose(0, 1)
            value_cache[row, :, place] = v[0, start:stop].transpose(0, 1)


def cached_attention(
    q: Float[Tensor, "B T Hq E"],
    key_cache: Float[Tensor, "S Hk capacity E"],
    value_cache: Float[Tensor, "S Hk capacity E"],
    lengths_before: Int[Tensor, " S"],
    *,
    cu_seqlens: Int[Tensor, " S_plus_1"] | Documents | None = None,
) -> Float[Tensor, "B T Hq E"]:
    """Let each new token attend to its sequence's cache, up to and including itself.

    The new tokens' own keys and values are already there (`write_cache`), behind
    `lengths_before[s]` older ones. Row b of q (or, with `cu_seqlens`, document s) belongs to cache
    row b (or s). Entries behind a row's end do not count but may be read, so they must be finite.
    Numerics: those of torch's scaled_dot_product_attention in q.dtype.
    Raises: ValueError if `cu_seqlens` does not fit the row.
    """
    before = lengths_before.tolist()
    if cu_seqlens is None:
        return _over_cache(q, key_cache, value_cache, before)
    spans = enumerate(Documents.of(cu_seqlens, q).spans)
    parts = [
        _over_cache(q[:, i:j], key_cache[s : s + 1], value_cache[s : s + 1], before[s : s + 1])
        for s, (i, j) in spans
        if i < j
    ]
    return torch.cat(parts, dim=1) if parts else q


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    dtype = product_dtype(q.dtype, q.device)
    if dtype != q.dtype:
        return _causal(q.to(dtype), k.to(dtype), v.to(dtype)).to(q.dtype)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    return y.transpose(1, 2)


def _over_cache(q: Tensor, key: Tensor, value: Tensor, before: list[int]) -> Tensor:
    """Attend rows of equally many new tokens to cache rows of different lengths."""
    num_new = q.shape[1]
    if num_new > 1 and not any(before):
        new = key[:, :, :num_new].transpose(1, 2), value[:, :, :num_new].transpose(1, 2)
        return _causal(q, new[0].to(q.dtype), new[1].to(q.dtype))
    parts = [
        _query_tile(q[:, i : i + _QUERY_TILE], key, value, [length + i for length in before])
        for i in range(0, num_new, _QUERY_TILE)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _query_tile(q: Tensor, key: Tensor, value: Tensor, before: list[int]) -> Tensor:
    num_rows, num_new, num_heads, width = q.shape
    shared = num_heads // key.shape[1]
    total = max(before) + num_new
    key, value = key[:, :, :total].to(q.dtype), value[:, :, :total].to(q.dtype)
    mask = None
    if num_new > 1 or len(set(before)) > 1:
        last_seen = torch.tensor(before, device=q.device)[:, None] + torch.arange(
            num_new, device=q.device
        )
        mask = torch.arange(total, device=q.device) <= last_seen[..., None]  # (rows, new, total)
        mask = mask[:, None].expand(-1, shared, -1, -1).flatten(1, 2)[:, None]
    folded = q.unflatten(2, (-1, shared)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    y = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask)  # (rows, Hk, R new, E)
    y = y.view(num_rows, -1, shared, num_new, width).permute(0, 3, 1, 2, 4)
    return y.reshape(num_rows, num_new, num_heads, width)
