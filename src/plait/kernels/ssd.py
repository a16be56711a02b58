"""The SSD scan of Mamba-2 in chunks: as exact as the recurrence, made of matrix products.

It is the one form used for training and for prefill; `state_step` advances a single token while
decoding, `ssd_naive` is the definition that judges both.

The idea. Per head, with a scalar A < 0 and a step dt_t > 0, the layer is a linear recurrence on a
P x N state

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T          y_t = h_t C_t + D x_t

Token by token that is T tiny outer products. Unrolled, it is one masked matrix product

    y_q = sum_{s <= q} (C_q . B_s) exp(a_{s+1} + ... + a_q) dt_s x_s + D x_q       with a_t = dt_t A

which is attention with a decay for softmax: quadratic in T. Chunks of Q tokens take the good half
of each. Let c_q = a_1 + ... + a_q be the running sum inside a chunk and h the state that enters it.
Then

    y_q = sum_{s <= q} (C_q . B_s) exp(c_q - c_s) dt_s x_s      the same chunk: (Q, Q) matrices
          + exp(c_q) h C_q                                      all before it: one product with h
          + D x_q
    h'  = exp(c_Q) h + sum_s exp(c_Q - c_s) dt_s x_s B_s^T      the leaving state: one with B

Only the last line is sequential, T/Q steps. All exponents are sums of negative numbers, and the
half of a (Q, Q) matrix that would hold positive ones is set to 0 *before* exp and meets products
C_q . B_s set to 0, so nothing overflows however large dt |A| is, and nothing is inf times 0.
C_q . B_s does not depend on the head: it is computed per chunk and group, and the products with h
and B take all heads of a group at once, as (R P) x N matrices.

Sequences. Documents start on chunk boundaries: tokens are gathered into whole chunks, and the
places behind a document's end repeat its last token with dt = 0, for which the recurrence is the
identity (decay 1, update 0). So no chunk ever sees two documents, which makes leaks impossible
rather than masked, and the state behind the last chunk *is* the document's final state. Chunks are
ordered by their number within the document, so that one elementwise step of the recurrence advances
all documents together (`chunk_layout`). Rows of an unpacked batch are documents of equal
length.

Blocks. On a CPU the (Q, Q) matrices and the states of a long row leave the caches, and moving them
costs more than computing them; so chunks are worked on in blocks of some hundred tokens, and the
state is one buffer that each chunk reads out, decays and adds to in place.

Gradients. Backward runs the same blocks in reverse and recomputes what is local to a chunk; kept
from forward are the inputs, y and the state that enters each chunk, all linear in T. With dy and
the gradient g' of the leaving state, and z_s the gradient of dt_s x_s,

    z_s    = sum_{q >= s} (C_q . B_s) exp(c_q - c_s) dy_q + exp(c_Q - c_s) g' B_s
    dx_s   = dt_s z_s + D dy_s                                  ddt_s gets x_s . z_s
    g      = exp(c_Q) g' + sum_q exp(c_q) dy_q C_q^T            gradient of the entering state
    dc_q   = dy_q . (y_q - D x_q) - dt_q x_q . z_q              and dc_Q gets <g', h'>
    da_t   = sum_{q >= t} dc_q                                  ddt_t gets A da_t; dA = sum dt da

dc is short because y_q depends on c_q through a common factor, as z_s does on c_s. Its two terms
share the product of each token with itself, which cancels: da carries an absolute error of a few
units in the last place of dy . y, which is noise only where the gradient itself is nothing. This is
why y is kept in the compute dtype even when it returns in a shorter one.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from plait.kernels import ssd_native
from plait.kernels.chunk_layout import ChunkLayout, chunk_layout, take
from plait.kernels.documents import Documents
from plait.kernels.ssd_block import Gradients, ScanInputs, backward_block, forward_block
from plait.kernels.ssd_naive import SSDOutput
from plait.kernels.tiles import SCAN_BLOCKS


def ssd_scan(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    A: Float[Tensor, " H"],
    B: Float[Tensor, "B T G N"],
    C: Float[Tensor, "B T G N"],
    D: Float[Tensor, " H"],
    *,
    initial_state: Float[Tensor, "S H P N"] | None = None,
    cu_seqlens: Int[Tensor, " S_plus_1"] | Documents | None = None,
    chunk_length: int | None = None,
) -> SSDOutput:
    """Run the selective state-space recurrence over whole sequences, in chunks.

    h <- exp(dt A) h + dt x B^T;   y = h C + D x      head j reads group j // (H/G) of B and C

    dt is after bias, softplus and clamp; A is negative. Without `cu_seqlens` each row is a sequence
    (S = B), with it the single row holds S packed ones, which may be empty. `chunk_length` changes
    the speed, not the result beyond rounding. x, B and C may be views into a wider tensor.
    Numerics: computes in the promoted dtype of x and dt, float32 at least; y returns in x.dtype,
    the state in the compute dtype. Differentiable once in all seven tensors; gradients return in
    their tensors' dtypes.
    Raises: ValueError if H is not a multiple of G, or `cu_seqlens` or the initial states do not fit
    the rows.
    Source: arXiv 2405.21060, section 6.
    """
    if x.shape[2] % B.shape[2]:
        raise ValueError(f"{x.shape[2]} heads are no multiple of {B.shape[2]} groups")
    documents = Documents.of(cu_seqlens, x)
    if initial_state is not None:
        documents.check_states(initial_state, *x.shape[2:], B.shape[3])
    arguments = x, dt, A, B, C, D, initial_state
    records = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments)
    if chunk_length is None and ssd_native.takes(*arguments):
        if records:
            return SSDOutput(*ssd_native.differentiable(*arguments, documents))
        inputs = ssd_native.Inputs.of(x, dt, A, B, C, D, documents)
        y, final_state, _ = ssd_native.forward(inputs, initial_state, keep=False)
        return SSDOutput(y.view(x.shape), final_state)
    default_length, block_tokens = SCAN_BLOCKS.get(x.device.type, SCAN_BLOCKS["cuda"])
    layout = documents.derived(chunk_layout, chunk_length or default_length, block_tokens, x.device)
    if records:
        return SSDOutput(*_Scan.apply(*arguments, layout))  # pyright: ignore
    inputs = ScanInputs.of(x, dt, A, B, C, D, layout)
    y, final_state = _scan(inputs, initial_state, None)
    return SSDOutput(y.view(x.shape).to(x.dtype), final_state)


def _scan(
    inputs: ScanInputs, initial_state: Tensor | None, entering: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run all blocks; `entering` (chunks, H, P N) receives the state before each chunk if given."""
    layout = inputs.layout
    state = inputs.ranked_state(initial_state)
    y = inputs.x.new_empty(len(layout.tokens), inputs.x.shape[1], dtype=state.dtype)
    for block in layout.blocks:
        kept = None if entering is None else entering[block.chunks]
        forward_block(inputs, block, state, kept, y[block.places])
    return take(y, layout.read_back), inputs.unranked_state(state)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        initial_state: Tensor | None,
        layout: ChunkLayout,
    ) -> tuple[Tensor, Tensor]:
        inputs = ScanInputs.of(x, dt, A, B, C, D, layout)
        entering = inputs.empty_states(layout.num_chunks)
        y, final_state = _scan(inputs, initial_state, entering)
        y = y.view(x.shape)
        ctx.save_for_backward(x, dt, A, B, C, D, y, entering)
        ctx.layout = layout
        ctx.initial_dtype = None if initial_state is None else initial_state.dtype
        ctx.set_materialize_grads(False)
        return y.to(x.dtype), final_state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, D, y, entering = ctx.saved_tensors
        inputs = ScanInputs.of(x, dt, A, B, C, D, ctx.layout)
        dy = torch.zeros_like(y) if dy is None else dy
        dstate = inputs.ranked_state(dfinal)
        gradients = Gradients.empty(inputs)
        for block in reversed(ctx.layout.blocks):
            backward_block(
                inputs,
                block,
                entering[block.chunks],
                dstate,
                dy.reshape(inputs.x.shape),
                y.view(inputs.x.shape),
                gradients,
            )
        dinitial = None
        if ctx.initial_dtype is not None:
            dinitial = inputs.unranked_state(dstate).to(ctx.initial_dtype)
        return *gradients.like((x, dt, A, B, C, D), ctx.layout), dinitial, None
