"""Depthwise causal convolution with SiLU: the short memory in front of the scan.

Each channel sees its own last W inputs, W being 4 in every released model. That is no work for a
convolution library, which would transpose the tokens and call a general routine, but W shifted
multiply-adds over a contiguous array, bound by memory alone; so it goes in blocks that stay in
cache.

Documents. The shifted sums run over all tokens as if they were one sequence, which is right for
every token but the first W-1 of each document: they would see the document before. These few, its
heads, are computed apart, from gathered windows that hold the initial state (or zeros) where the
document has not begun, and overwrite the others. So the gradient that reaches the shifted sums is
zero there.
"""

from bisect import bisect_left
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from plait.kernels import conv_native
from plait.kernels.documents import Documents

# elements in a block of tokens: with its temporaries it stays in a core's cache
_BLOCK_ELEMENTS = 1 << 18


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
    Raises: ValueError if `cu_seqlens` or the initial states do not fit the rows.
    Source: agrees with causal_conv1d_fn of causal_conv1d with activation "silu".
    """
    documents = Documents.of(cu_seqlens, x)
    flat = x.reshape(x.shape[0] * x.shape[1], x.shape[2])
    dtype = torch.promote_types(x.dtype, torch.float32)
    taps = weight.t().to(dtype).contiguous()
    bias = taps.new_zeros(x.shape[2]) if bias is None else bias.to(dtype)

    if initial_state is None:
        initial_state = x.new_zeros(len(documents), x.shape[2], weight.shape[1] - 1)
    documents.check_states(initial_state, x.shape[2], weight.shape[1] - 1)
    before = initial_state.to(x.dtype).transpose(1, 2).flatten(0, 1)
    if conv_native.takes(flat, taps):
        y, after = conv_native.differentiable(flat, taps, bias, before, documents)
    else:
        edges = documents.derived(_edges, weight.shape[1], x.device)
        y, after = _Conv.apply(flat, taps, bias, before, edges)  # pyright: ignore
    return ConvOutput(y.view(x.shape), after.view(len(documents), -1, x.shape[2]).transpose(1, 2))


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
    taps, state_, x_ = weight.to(dtype), state.to(dtype), x.to(dtype)
    y = x_ * taps[:, -1] if bias is None else torch.addcmul(bias.to(dtype), x_, taps[:, -1])
    for tap in range(state.shape[2]):
        y.addcmul_(state_[..., tap], taps[:, tap])
    for tap in range(state.shape[2] - 1):
        state[..., tap] = state[..., tap + 1]
    state[..., -1] = x
    return F.silu(y, inplace=True).to(x.dtype)


class _Edges(NamedTuple):
    """Tokens at the edges of documents, and windows into a pool of state rows and these tokens."""

    tokens: Int[Tensor, " edge_tokens"]
    """the first and the last W-1 tokens of each document, as flat positions"""
    heads: Int[Tensor, " heads"]
    """the first of them again: tokens whose window begins before their document"""
    windows: Int[Tensor, "heads W"]
    """what each head sees, as rows of the pool: S (W-1) rows of state, then the edge tokens"""
    final: Int[Tensor, "S W_minus_1"]
    """the last W-1 inputs of each document, as rows of the pool"""
    head_list: list[int]
    """`heads`, in ascending order"""

    def heads_within(self, start: int, stop: int) -> Tensor:
        """Return the heads among tokens start..stop, counted from start."""
        low, high = bisect_left(self.head_list, start), bisect_left(self.head_list, stop)
        return self.heads[low:high] - start


def _edges(documents: Documents, num_taps: int, device: torch.device) -> _Edges:
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
    tensors = (torch.from_numpy(array).to(device) for array in arrays)
    return _Edges(*tensors, head_list=heads.tolist())


class _Conv(torch.autograd.Function):
    """The convolution over flat tokens (T, Ch); states before and after are rows (S (W-1), Ch)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, taps: Tensor, bias: Tensor, before: Tensor, edges: _Edges
    ) -> tuple[Tensor, Tensor]:
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        for start, stop in _blocks(x):
            into = y[start:stop] if y.dtype == taps.dtype else None
            halo = _halo(x, taps, start, stop)
            block = F.silu(_sums(halo, taps, bias, stop - start, into), inplace=True)
            if into is None:
                y[start:stop] = block
        pool = torch.cat([before, x.index_select(0, edges.tokens)])
        y.index_copy_(0, edges.heads, F.silu(_head_sums(pool, taps, bias, edges)).to(x.dtype))
        ctx.save_for_backward(x, taps, bias, pool)
        ctx.edges = edges
        return y, pool.index_select(0, edges.final.flatten())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dafter: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, bias, pool = ctx.saved_tensors
        edges: _Edges = ctx.edges
        past = len(taps) - 1
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dtaps, dbias = torch.zeros_like(taps), torch.zeros_like(bias)
        following = taps.new_zeros(past, x.shape[1])
        for start, stop in reversed(_blocks(x)):
            # gradient of the sums, in this block and at the W-1 tokens behind it
            length = stop - start
            dsums = torch.cat([dy[start:stop].to(taps.dtype), following])
            halo = _halo(x, taps, start, stop)
            _through_silu(dsums[:length], _sums(halo, taps, bias, length, None))
            dsums.index_fill_(0, edges.heads_within(start, stop), 0)
            following = dsums[:past].clone()
            dbias += dsums[:length].sum(0)
            into = dx[start:stop] if dx.dtype == taps.dtype else None
            gradient = torch.mul(dsums[:length], taps[past], out=into)
            for shift in range(1, past + 1):
                gradient.addcmul_(dsums[shift : shift + length], taps[past - shift])
            if into is None:
                dx[start:stop] = gradient
            for shift in range(past + 1):
                seen = halo[max(len(halo) - length - shift, 0) : len(halo) - shift]
                dtaps[past - shift] += (dsums[length - len(seen) : length] * seen).sum(0)

        dsums = dy.index_select(0, edges.heads).to(taps.dtype)
        _through_silu(dsums, _head_sums(pool, taps, bias, edges))
        dbias += dsums.sum(0)
        dtaps += (_windows(pool, edges) * dsums[:, None]).sum(0)
        dpool = torch.zeros_like(pool, dtype=taps.dtype)
        dpool.index_add_(0, edges.windows.flatten(), (dsums[:, None] * taps).flatten(0, 1))
        dpool.index_add_(0, edges.final.flatten(), dafter.to(taps.dtype))
        dbefore, dtokens = dpool.to(x.dtype).split(
            [len(pool) - len(edges.tokens), len(edges.tokens)]
        )
        return dx.index_add_(0, edges.tokens, dtokens), dtaps, dbias, dbefore, None


def _windows(pool: Tensor, edges: _Edges) -> Tensor:
    """Return what each head sees, (heads, W, Ch)."""
    return pool.index_select(0, edges.windows.flatten()).view(*edges.windows.shape, -1)


def _head_sums(pool: Tensor, taps: Tensor, bias: Tensor, edges: _Edges) -> Tensor:
    return (_windows(pool, edges) * taps).sum(1) + bias


def _through_silu(gradient: Tensor, sums: Tensor) -> None:
    """Take a gradient back through SiLU, in place."""
    torch.ops.aten.silu_backward.grad_input(gradient, sums, grad_input=gradient)


def _blocks(x: Tensor) -> list[tuple[int, int]]:
    length = max(_BLOCK_ELEMENTS // max(x.shape[1], 1), 16) if x.device.type == "cpu" else len(x)
    return [(start, min(start + length, len(x))) for start in range(0, len(x), max(length, 1))]


def _halo(x: Tensor, taps: Tensor, start: int, stop: int) -> Tensor:
    """Return what tokens start..stop see, as far as there is anything, in the compute dtype."""
    return x[max(start - len(taps) + 1, 0) : stop].to(taps.dtype)


def _sums(halo: Tensor, taps: Tensor, bias: Tensor, length: int, out: Tensor | None) -> Tensor:
    """Return bias + the shifted sums for the last `length` tokens, in `out` if given."""
    past = len(taps) - 1
    current = len(halo) - length
    out = torch.addcmul(bias, halo[current:], taps[past], out=out)
    for shift in range(1, past + 1):
        seen = halo[max(current - shift, 0) : len(halo) - shift]
        out[length - len(seen) :].addcmul_(seen, taps[past - shift])
    return out
