"""Causal grouped-query attention without position encoding, over documents or over a cache.

The arithmetic is PyTorch's fused attention, whose memory is linear in the number of tokens; this
module only decides how to ask for it. Packed documents are attended one by one, so there is never a
mask over a whole row. Over a cache, the query heads that share a key/value head are folded into the
query axis: the keys and values are then read once and never repeated, which is what decoding spends
its time on.

A cache is (blocks, tokens per block, Hk, E). Either each sequence has one block, as long as it may
ever grow, or sequences own lists of short blocks, in any order: their rows of `block_tables`. The
blocks of a sequence are then brought together for each call, which on a CPU costs little beside
reading them and needs no kernel of its own: those of all heads and sequences where these are few
values, else of some heads of some sequences after the others.

Scores are scaled by E**-0.5. Query head j reads key/value head j // (Hq/Hk).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from plait.kernels import attention_native
from plait.kernels.documents import Documents
from plait.kernels.processor import product_dtype
from plait.kernels.tiles import ATTENTION_VALUES, QUERY_TILE


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
    cache: Float[Tensor, "blocks tokens Hk E"],
    new: Float[Tensor, "B T Hk E"],
    slots: Int[Tensor, " BT"],
) -> None:
    """Write new keys or values in place; token i goes to `slots[i]`, counted through all blocks."""
    cache.flatten(0, 1).index_copy_(0, slots, new.flatten(0, 1).to(cache.dtype))


def cached_attention(
    q: Float[Tensor, "B T Hq E"],
    key_cache: Float[Tensor, "blocks tokens Hk E"],
    value_cache: Float[Tensor, "blocks tokens Hk E"],
    lengths_before: list[int],
    *,
    block_tables: Int[Tensor, "S most_blocks"] | None = None,
    cu_seqlens: Int[Tensor, " S_plus_1"] | Documents | None = None,
) -> Float[Tensor, "B T Hq E"]:
    """Let each new token attend to its sequence's cache, up to and including itself.

    The new tokens' own keys and values are already there (`write_cache`), behind
    `lengths_before[s]` older ones. Row b of q (or, with `cu_seqlens`, document s) belongs to
    sequence b (or s), whose tokens lie in the blocks `block_tables[s]`, or in block s if there are
    no tables. Entries behind a sequence's end do not count but may be read, so they must be finite.
    Numerics: those of torch's scaled_dot_product_attention in q.dtype.
    Raises: ValueError if `cu_seqlens` does not fit the row.
    """

    def attend(queries: Tensor, first: int, last: int) -> Tensor:
        before = lengths_before[first:last]
        if block_tables is None:
            key, value = key_cache[first:last], value_cache[first:last]
            return _over_cache(queries, key, value, before)
        tables = block_tables[first:last]
        return _over_blocks(queries, key_cache, value_cache, before, tables)

    if cu_seqlens is None:
        return attend(q, 0, len(lengths_before))
    spans = enumerate(Documents.of(cu_seqlens, q).spans)
    parts = [attend(q[:, i:j], s, s + 1) for s, (i, j) in spans if i < j]
    return torch.cat(parts, dim=1) if parts else q


def _over_blocks(
    q: Tensor, key_cache: Tensor, value_cache: Tensor, before: list[int], tables: Tensor
) -> Tensor:
    """Attend rows of equally many new tokens to the blocks of their tables."""
    num_blocks = -(-(max(before) + q.shape[1]) // key_cache.shape[1])
    values_per_head = num_blocks * key_cache.shape[1] * key_cache.shape[3]
    num_heads = key_cache.shape[2]
    shared = q.shape[2] // num_heads
    rows_at_once = max(1, ATTENTION_VALUES // values_per_head)
    heads_at_once = max(1, rows_at_once // len(q))
    y = torch.empty_like(q)
    for row in range(0, len(q), rows_at_once):
        rows = slice(row, row + rows_at_once)
        ids = tables[rows, :num_blocks]
        for head in range(0, num_heads, heads_at_once):
            heads = slice(head, head + heads_at_once)
            key, value = (
                cache[:, :, heads].index_select(0, ids.flatten()).unflatten(0, ids.shape)
                for cache in (key_cache, value_cache)
            )
            of_heads = slice(head * shared, (head + heads_at_once) * shared)
            y[rows, :, of_heads] = _over_cache(
                q[rows, :, of_heads], key.flatten(1, 2), value.flatten(1, 2), before[rows]
            )
    return y


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    dtype = product_dtype(q.dtype, q.device)
    if dtype != q.dtype:
        return _causal(q.to(dtype), k.to(dtype), v.to(dtype)).to(q.dtype)
    if attention_native.takes(q, k, v):
        return attention_native.forward(q, k, v, [0] * len(q))
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    return y.transpose(1, 2)


def _over_cache(q: Tensor, key: Tensor, value: Tensor, before: list[int]) -> Tensor:
    """Attend rows of equally many new tokens to cache rows (rows, tokens, Hk, E) of different
    lengths."""
    num_new = q.shape[1]
    if num_new > 1 and not any(before):
        return _causal(q, key[:, :num_new].to(q.dtype), value[:, :num_new].to(q.dtype))
    if attention_native.takes(q, key, value):
        return attention_native.forward(q, key, value, before)
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    shared = q.shape[2] // key.shape[1]
    mask_values = len(q) * shared * (max(before) + num_new)
    tile = min(QUERY_TILE, max(1, ATTENTION_VALUES // mask_values))
    parts = [
        _query_tile(q[:, i : i + tile], key, value, [length + i for length in before])
        for i in range(0, num_new, tile)
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
