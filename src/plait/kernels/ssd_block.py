"""The algebra of the SSD scan in one block of chunks, forward and backward.

`ssd` explains it and is the door; nothing here is for other modules. Letters beyond the legend: k
chunks in the block, R = H/G heads per group. Two orders of axes serve two kinds of product: (k, G,
Q, R, P) has the heads of a group side by side, for products with B, C and states; (k, G, R, Q, P)
has one matrix per head, for products with the (Q, Q) matrices. Every copy into one of them
multiplies by a decay or a dt on the way.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from plait.kernels.chunk_layout import Block, ChunkLayout, take


class ScanInputs(NamedTuple):
    """What a whole scan reads: tokens flat and in their own dtype, A and D in the compute dtype."""

    x: Tensor  # (tokens, H P)
    dt: Tensor  # (tokens, H)
    A: Tensor  # (G, R)
    B: Tensor  # (tokens, G N)
    C: Tensor  # (tokens, G N)
    D: Tensor  # (G, R)
    layout: ChunkLayout
    head_dim: int

    @classmethod
    def of(
        cls, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, layout: ChunkLayout
    ) -> "ScanInputs":
        """Flatten batch and tokens, and fix the compute dtype."""
        dtype = torch.promote_types(torch.promote_types(x.dtype, dt.dtype), torch.float32)
        num_tokens = x.shape[0] * x.shape[1]
        G, N = B.shape[2:]
        return cls(
            x.reshape(num_tokens, x.shape[2] * x.shape[3]),
            dt.reshape(num_tokens, x.shape[2]),
            A.to(dtype).view(G, -1),
            B.reshape(num_tokens, G * N),
            C.reshape(num_tokens, G * N),
            D.to(dtype).view(G, -1),
            layout,
            x.shape[3],
        )

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self.A.dtype

    @property
    def state_size(self) -> int:
        """N."""
        return self.B.shape[1] // self.A.shape[0]

    def empty_states(self, count: int) -> Tensor:
        """Return room for `count` states, (count, H, P N)."""
        shape = count, self.A.numel(), self.head_dim * self.state_size
        return self.x.new_empty(shape, dtype=self.dtype)

    def ranked_state(self, state: Tensor | None) -> Tensor:
        """Copy states (S, H, P, N) into layout order (S, H, P N), zero if there are none."""
        num_sequences = len(self.layout.order)
        if state is None:
            return self.empty_states(num_sequences).zero_()
        return state.to(self.dtype).flatten(2).index_select(0, self.layout.order)

    def unranked_state(self, state: Tensor) -> Tensor:
        """Copy states in layout order back to (S, H, P, N)."""
        state = state.index_select(0, self.layout.rank_of)
        return state.unflatten(2, (self.head_dim, self.state_size))


class _Chunks(NamedTuple):
    """One block's tokens in chunk order and the compute dtype, and their decays and scores."""

    x: Tensor  # (k, Q, G, R, P)
    dt: Tensor  # (k, G, R, Q), zero on padding
    B: Tensor  # (k G, Q, N)
    C: Tensor  # (k G, Q, N)
    decay_in: Tensor  # (k, G, R, Q)  exp(c_q): from the chunk's start through token q
    decay_out: Tensor  # (k, G, R, Q)  exp(c_Q - c_q): from behind token q to the chunk's end
    mask: Tensor  # (k G, R, Q, Q)  exp(c_q - c_s) where s <= q, else 1
    scores: Tensor  # (k G, 1, Q, Q)  C_q . B_s where s <= q, else 0

    @property
    def chunk_decay(self) -> Tensor:
        """exp(c_Q) of each chunk and head, (k, H, 1)."""
        return self.decay_in[..., -1].flatten(1)[..., None]

    def grouped(self, scale: Tensor) -> Tensor:
        """Return x times a factor per head and token (k, G, R, Q), as (k G, Q, R P)."""
        product = _product(self.x.transpose(1, 2), scale.transpose(2, 3)[..., None])
        return product.view(len(self.B), self.B.shape[1], -1)

    def per_head(self) -> Tensor:
        """Return dt x as (k H, Q, P)."""
        return _product(self.x.permute(0, 2, 3, 1, 4), self.dt[..., None]).flatten(0, 2)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply into fresh memory laid out in the order of a's axes, whatever a's strides."""
    return torch.mul(a, b, out=torch.empty(a.shape, dtype=a.dtype, device=a.device))


def _load(inputs: ScanInputs, block: Block) -> _Chunks:
    Q = block.chunk_length
    G, R = inputs.A.shape

    def chunks(flat: Tensor) -> Tensor:
        return take(flat, block.tokens).to(inputs.dtype).view(-1, Q, G, flat.shape[1] // G)

    x = chunks(inputs.x).unflatten(3, (R, -1))
    dt = chunks(inputs.dt)
    if block.padding is not None:
        dt.view(-1, G, R).index_fill_(0, block.padding, 0)
    dt = dt.permute(0, 2, 3, 1).contiguous()
    B, C = (chunks(flat).transpose(1, 2).flatten(0, 1) for flat in (inputs.B, inputs.C))
    total = (dt * inputs.A[..., None]).cumsum(-1)
    mask = total[..., :, None] - total[..., None, :]
    return _Chunks(
        x=x,
        dt=dt,
        B=B,
        C=C,
        decay_in=total.exp(),
        decay_out=(total[..., -1:] - total).exp_(),
        # where s > q this is 1, which the scores make 0: exp is twice as slow at -inf
        mask=mask.clamp_max_(0).exp_().flatten(0, 1),
        scores=torch.bmm(C, B.transpose(1, 2)).tril_()[:, None],
    )


def _per_token(factor: Tensor) -> Tensor:
    """Turn a factor per head (k, G, R, Q) into one that multiplies (k, Q, G, R, P)."""
    return factor.permute(0, 3, 1, 2)[..., None]


def forward_block(
    inputs: ScanInputs, block: Block, state: Tensor, entering: Tensor | None, y: Tensor
) -> None:
    """Advance `state` (S, H, P N) over a block in place; write the outputs into y (places, H P).

    `entering` (chunks, H, P N) receives the state before each chunk if given.
    """
    c = _load(inputs, block)
    k, Q, G, R, P = c.x.shape
    x_out = c.grouped(c.dt * c.decay_out)
    before = torch.empty_like(x_out)
    chunk_decay = c.chunk_decay
    for chunks, ranks in block.segments:
        h, pairs = state[ranks], slice(chunks.start * G, chunks.stop * G)
        if entering is not None:
            entering[chunks] = h
        h_ = h.view(-1, R * P, c.B.shape[2])
        torch.bmm(c.C[pairs], h_.transpose(1, 2), out=before[pairs])
        h.mul_(chunk_decay[chunks])
        h_.baddbmm_(x_out[pairs].transpose(1, 2), c.B[pairs])
    within = torch.bmm(c.mask.mul_(c.scores).flatten(0, 1), c.per_head())  # (k H, Q, P)
    out = y.view(c.x.shape)
    within = within.view(k, G, R, Q, P).permute(0, 3, 1, 2, 4)
    torch.addcmul(within, c.x, inputs.D[..., None], out=out)
    out.addcmul_(before.view(k, G, Q, R, P).transpose(1, 2), _per_token(c.decay_in))


class Gradients(NamedTuple):
    """Gradients under way: per token in chunk order, A and D summed, all in the compute dtype."""

    x: Tensor  # (places, H P)
    dt: Tensor  # (places, H)
    A: Tensor  # (G, R)
    B: Tensor  # (places, G N)
    C: Tensor  # (places, G N)
    D: Tensor  # (G, R)

    @classmethod
    def empty(cls, inputs: ScanInputs) -> "Gradients":
        """Make room for the gradients of a scan."""
        num_places = len(inputs.layout.tokens)
        x, dt, B, C = (
            flat.new_empty(num_places, flat.shape[1], dtype=inputs.dtype)
            for flat in (inputs.x, inputs.dt, inputs.B, inputs.C)
        )
        return cls(x, dt, torch.zeros_like(inputs.A), B, C, torch.zeros_like(inputs.D))

    def like(self, arguments: Sequence[Tensor], layout: ChunkLayout) -> list[Tensor]:
        """Return each gradient in the token order, shape and dtype of its argument."""
        per_token = (True, True, False, True, True, False)
        return [
            (take(gradient, layout.read_back) if tokens else gradient)
            .view(argument.shape)
            .to(argument.dtype)
            for gradient, argument, tokens in zip(self, arguments, per_token, strict=True)
        ]


def backward_block(
    inputs: ScanInputs,
    block: Block,
    entering: Tensor,
    dstate: Tensor,
    dy: Tensor,
    y: Tensor,
    gradients: Gradients,
) -> None:
    """Take the gradient back over a block: `dstate` (S, H, P N) in place, others into `gradients`.

    `dy` and `y` are flat, (tokens, H P).
    """
    c = _load(inputs, block)
    k, Q, G, R, P = c.x.shape
    dy = take(dy, block.tokens).to(inputs.dtype)
    if block.padding is not None:
        dy.index_fill_(0, block.padding, 0)
    dy = dy.view(c.x.shape)
    y = take(y, block.tokens).view(c.x.shape)

    dx_in, dscores = _within_gradients(c, dy.permute(0, 2, 3, 1, 4).reshape(-1, Q, P))
    dB, dC = torch.bmm(dscores.transpose(1, 2), c.C), torch.bmm(dscores, c.B)
    dx_out, at_end = _between_gradients(block, c, dy, entering, dstate, dB, dC)

    dt = c.dt.permute(0, 3, 1, 2)  # (k, Q, G, R)
    dx = gradients.x[block.places].view(c.x.shape)
    dx_out = dx_out.view(k, G, Q, R, P).transpose(1, 2)
    dx_in = dx_in.view(k, G, R, Q, P).permute(0, 3, 1, 2, 4)
    torch.addcmul(dx_in, dx_out, _per_token(c.decay_out), out=dx)  # z of the module docstring
    ddt = (c.x * dx).sum(-1)
    dD = (c.x * dy).sum(-1)
    dtotal = (dy * y).sum(-1) - inputs.D * dD - dt * ddt
    dtotal[:, -1] += at_end
    da = dtotal.flip(1).cumsum(1).flip(1)
    dx.mul_(dt[..., None]).addcmul_(dy, inputs.D[..., None])

    gradients.A.add_((da * dt).sum((0, 1)))
    gradients.D.add_(dD.sum((0, 1)))
    torch.addcmul(ddt, da, inputs.A, out=gradients.dt[block.places].view(k, Q, G, R))
    for total, part in ((gradients.B, dB), (gradients.C, dC)):
        total[block.places].view(k, Q, G, -1).copy_(part.view(k, G, Q, -1).transpose(1, 2))


def _between_gradients(
    block: Block, c: _Chunks, dy: Tensor, entering: Tensor, dstate: Tensor, dB: Tensor, dC: Tensor
) -> tuple[Tensor, Tensor]:
    """Carry `dstate` back over the chunks; add the states' part to dB and dC (k G, Q, N).

    Returns g' B_s of each token (k G, Q, R P), and <g', h'> of each chunk (k, G, R).
    """
    k, Q, G, R, P = dy.shape
    dy_in = _product(dy.transpose(1, 2), c.decay_in.transpose(2, 3)[..., None])
    dy_in = dy_in.view(k * G, Q, R * P)
    x_out = c.grouped(c.dt * c.decay_out)
    dx_out = torch.empty_like(x_out)
    chunk_decay = c.chunk_decay
    at_end = torch.empty_like(chunk_decay)
    for chunks, ranks in reversed(block.segments):
        g, h, pairs = dstate[ranks], entering[chunks], slice(chunks.start * G, chunks.stop * G)
        g_, h_ = (state.view(-1, R * P, c.B.shape[2]) for state in (g, h))
        torch.bmm(c.B[pairs], g_.transpose(1, 2), out=dx_out[pairs])
        dB[pairs].baddbmm_(x_out[pairs], g_)
        dC[pairs].baddbmm_(dy_in[pairs], h_)
        g.mul_(chunk_decay[chunks])
        at_end[chunks] = torch.linalg.vecdot(g, h)[..., None]
        g_.baddbmm_(dy_in[pairs].transpose(1, 2), c.C[pairs])
    # the leaving state is the decayed entering one plus the chunk's own update
    own = (x_out * dx_out).view(k, G, Q, R, P).sum((2, 4))
    return dx_out, own.add_(at_end.view(k, G, R))


def _within_gradients(c: _Chunks, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of dt x (k H, Q, P) and the scores (k G, Q, Q) by way of the masks."""
    dmatrix = torch.bmm(dy, c.per_head().transpose(1, 2)).view(c.mask.shape)
    dscores = dmatrix.mul_(c.mask).sum(1).tril_()
    matrix = c.mask.mul_(c.scores).flatten(0, 1)
    return torch.bmm(matrix.transpose(1, 2), dy), dscores
