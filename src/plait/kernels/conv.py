"""Depthwise causal convolution with SiLU: the short memory in front of the scan.

Each channel sees its own last W inputs, W being 4 in every released model. That is no work for a
convolution library, which would transpose the tokens and call a general routine, but W shifted
multiply-adds over a contiguous array, bound by memory alone; so it goes in blocks that stay in cache.

Documents. The shifted sums run over all tokens as if they were one sequence, which is right for every
token but the first W-1 of each document: they would see the document before. These few, its heads,
are computed apart, from gathered windows that hold the initial state (or zeros) where the document
has not begun, and overwrite the others. So the gradient that reaches the shifted sums is zero there.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from plait.kernels.documents import Documents

# elements in a block of tokens: with its temporaries it stays in a core's cache
_BLOCK_ELEMENTS = 1 << 17


class ConvOutput(NamedTuple):
    """What a convolution returns: activations, and each sequence's last W-1 inputs, newest last."""

    y: Float[Tensor, "B T Ch"]
    final_state: Float[Tensor, "S Ch W_minus_1"]


def causal_conv(
    x: Float[Tensor, "B T Ch"],
    weight: Float[Tensor, "Ch W"],
    bias: Float[Tensor, " Ch"] | None,
    *,
    initial_state: Float[Tensor, "S Ch W_minus_1"] | None = None,
    cu_seqlens: Int[Tensor, " S_plus_1"] | Documents | None = None,
) -> ConvOutput:
    """Convolve each channel with its last W inputs and apply SiLU.

    y_t = silu(bias + sum_w weight[:, w] x_{t - (W-1) + w})    the last tap meets the current token

    Without `cu_seqlens` each row is a sequence (S = B), with it the single row holds S packed ones,
    which may be shorter than W, or empty. Inputs before a sequence's first token are its initial
    state, or zero; its final state is the initial state of what follows.
    Numerics: computes in float32 (float64 stays); y and the final state return in x.dtype.
    Raises: ValueError if `cu_seqlens` does not fit the row.
    Source: agrees with causal_conv1d_fn of causal_conv1d with activation "silu".
    """
    documents = Documents.of(cu_seqlens, x)
    edges = documents.derived(_edges, weight.shape[1])
    flat = x.reshape(x.shape[0] * x.shape[1], x.shape[2])
    dtype = torch.promote_types(x.dtype, torch.float32)
    taps = weight.t().to(dtype).contiguous()
    bias = taps.new_zeros(x.shape[2]) if bias is None else bias.to(dtype)

    if initial_state is None:
        initial_state = x.new_zeros(len(documents), x.shape[2], weight.shape[1] - 1)
    before = initial_state.to(x.dtype).transpose(1, 2).flatten(0, 1)
    pool = torch.cat([before, flat.index_select(0, edges.tokens)])
    windows = pool.index_select(0, edges.windows.flatten()).view(*edges.windows.shape, -1)
    heads = F.silu((windows * taps).sum(1) + bias).to(x.dtype)
    y = _ShiftedSums.apply(flat, taps, bias).index_copy_(0, edges.heads, heads)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    final_state = pool.index_select(0, edges.final.flatten()).view(*edges.final.shape, -1)
    return ConvOutput(y.view(x.shape), final_state.transpose(1, 2))


def conv_step(
    x: Float[Tensor, "B Ch"],
    state: Float[Tensor, "B Ch W_minus_1"],
    weight: Float[Tensor, "Ch W"],
    bias: Float[Tensor, " Ch"] | None,
) -> Float[Tensor, "B Ch"]:
    """Convolve one token per row, apply SiLU, and shift the token into the state in place.

    Numerics: computes in float32 (float64 stays); y returns in x.dtype, the state keeps its own.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    window = torch.cat([state, x[..., None].to(state.dtype)], dim=-1)
    state.copy_(window[..., 1:])
    y = (window * weight.to(dtype)).sum(-1)
    return F.silu(y if bias is None else y + bias.to(dtype)).to(x.dtype)


class _Edges(NamedTuple):
    """What lies at the edges of documents: tokens, and windows into the pool (state rows, tokens)."""

    tokens: Int[Tensor, " edge_tokens"]
    """the first and the last W-1 tokens of each document, as flat positions"""
    heads: Int[Tensor, " heads"]
    """the first of them again: tokens whose window begins before their document"""
    windows: Int[Tensor, "heads W"]
    """what each head sees, as rows of the pool: S (W-1) rows of state, then the edge tokens"""
    final: Int[Tensor, "S W_minus_1"]
    """the last W-1 inputs of each document, as rows of the pool"""


def _edges(documents: Documents, num_taps: int) -> _Edges:
    past = num_taps - 1
    starts = np.array(documents.bounds[:-1], dtype=np.int64)[:, None]
    lengths = np.diff(documents.bounds)[:, None]
    state_rows = past * np.arange(len(documents))[:, None]
    # positions in the document, (S, W-1): of the heads, and of the last inputs (negative: state)
    head, last = np.arange(past)[None, :], lengths - past + np.arange(past)
    is_head, is_token = head < lengths, last >= 0
    head_rows = past * len(documents) + np.cumsum(is_head).reshape(is_head.shape) - 1
    last_rows = past * len(documents) + is_head.sum() + np.cumsum(is_token).reshape(last.shape) - 1
    # a window, (S, W-1, W): positions from W-1 before the head through the head itself
    position = np.arange(past)[:, None] - past + np.arange(num_taps)
    windows = np.where(
        position >= 0,
        head_rows[:, np.maximum(position, 0)],
        (state_rows + past)[:, None] + position,
    )
    final = np.where(is_token, last_rows, state_rows + past + last)
    heads, tails = (starts + head)[is_head], (starts + last)[is_token]
    arrays = np.concatenate([heads, tails]), heads, windows[is_head], final
    return _Edges(*(torch.from_numpy(array).to(documents.device) for array in arrays))


class _ShiftedSums(torch.autograd.Function):
    """silu(bias + sum_w taps[w] x[t - (W-1) + w]) over flat tokens, in blocks; zeros before the first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, taps, bias)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        for start, stop in _blocks(x):
            into = y[start:stop] if y.dtype == taps.dtype else None
            block = _before_silu(x, taps, bias, start, stop, into)
            F.silu(block, inplace=True)
            if into is None:
                y[start:stop] = block
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        x, taps, bias = ctx.saved_tensors
        past = len(taps) - 1
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dtaps, dbias = torch.zeros_like(taps), torch.zeros_like(bias)
        following = taps.new_zeros(past, x.shape[1])
        for start, stop in reversed(_blocks(x)):
            before = _before_silu(x, taps, bias, start, stop, None)
            # gradient of the sums, for this block and the W-1 tokens behind it
            dsums = torch.cat([dy[start:stop].to(taps.dtype), following])
            torch.ops.aten.silu_backward.grad_input(
                dsums[: stop - start], before, grad_input=dsums[: stop - start]
            )
            following = dsums[:past].clone()
            gradient = dsums[: stop - start] * taps[past]
            for shift in range(1, past + 1):
                gradient.addcmul_(dsums[shift : shift + stop - start], taps[past - shift])
            dx[start:stop] = gradient
            dbias += dsums[: stop - start].sum(0)
            for shift in range(past + 1):
                low = max(start, shift)
                seen = x[low - shift : stop - shift]
                dtaps[past - shift] += (dsums[low - start : stop - start] * seen).sum(0)
        return dx, dtaps, dbias


def _blocks(x: Tensor) -> list[tuple[int, int]]:
    length = max(_BLOCK_ELEMENTS // max(x.shape[1], 1), 16) if x.device.type == "cpu" else len(x)
    return [(start, min(start + length, len(x))) for start in range(0, len(x), max(length, 1))]


def _before_silu(
    x: Tensor, taps: Tensor, bias: Tensor, start: int, stop: int, out: Tensor | None
) -> Tensor:
    """Return the sums for tokens start..stop, in `out` if given."""
    past = len(taps) - 1
    halo = x[max(start - past, 0) : stop].to(taps.dtype)
    current = len(halo) - (stop - start)
    out = torch.addcmul(bias, halo[current:], taps[past], out=out)
    for shift in range(1, past + 1):
        skipped = max(shift - start, 0)
        out[skipped:].addcmul_(
            halo[current + skipped - shift : len(halo) - shift], taps[past - shift]
        )
    return out
