"""The SSD scan by way of the native kernel: `ssd` is the door and explains it.

One call walks all chunks of all sequences. Kept for backward are the inputs, y in float32 and the
state that enters each chunk, as in the torch form.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from plait.kernels import native
from plait.kernels.documents import Documents, bounds_tensor

_CHUNK = 32  # Q of native/ssd.cpp


def takes(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, initial: Tensor | None
) -> bool:
    """Say whether the native form may compute this scan."""
    return native.takes(x, dt, A, B, C, D, initial) and x.dtype == B.dtype == C.dtype


class _Chunks(NamedTuple):
    """The bounds of the sequences and the number of each one's first chunk, for pointers."""

    bounds: Tensor
    first: Tensor
    count: int


def chunks_of(documents: Documents) -> _Chunks:
    """Return what the kernel is told of the sequences; for `derived`."""
    bounds = documents.derived(bounds_tensor)
    ends = (-(-bounds.diff() // _CHUNK)).cumsum(0)
    first = torch.cat([ends.new_zeros(1), ends])
    return _Chunks(bounds, first, int(first[-1]))


class Inputs(NamedTuple):
    """What every call begins with; tensors stay alive as long as this does."""

    x: Tensor  # (tokens, H P)
    B: Tensor  # (tokens, G N)
    C: Tensor  # (tokens, G N)
    dt: Tensor  # (tokens, H), float32
    A: Tensor  # (H), float32
    D: Tensor  # (H), float32
    chunks: _Chunks
    sizes: tuple[int, int, int, int]  # H, P, G, N

    @classmethod
    def of(
        cls, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, documents: Documents
    ) -> "Inputs":
        """Flatten batch and tokens of the door's tensors."""
        num_tokens = x.shape[0] * x.shape[1]
        (H, P), (G, N) = x.shape[2:], B.shape[2:]
        x, B, C, dt = (
            native.rows(t.reshape(num_tokens, t.shape[2:].numel())) for t in (x, B, C, dt)
        )
        vectors = A.float().contiguous(), D.float().contiguous()
        return cls(x, B, C, dt.float(), *vectors, documents.derived(chunks_of), (H, P, G, N))

    def call(self, name: str, *others: Tensor | int | None) -> None:
        """Call a kernel."""
        tensors = self.x, self.B, self.C, self.dt, self.A, self.D
        strides = (t.stride(0) for t in tensors[:4])
        bounds, first, _ = self.chunks
        sequences = len(bounds) - 1
        native.call(
            name, self.x.dtype, *tensors, *strides, bounds, first, sequences, *self.sizes, *others
        )

    def states(self, given: Tensor | None) -> Tensor | None:
        """Return states as the kernel reads them."""
        return None if given is None else given.float().contiguous()

    def empty_states(self) -> Tensor:
        """Return room for the states of all sequences, (S, H, P, N)."""
        H, P, _, N = self.sizes
        return self.dt.new_empty(len(self.chunks.bounds) - 1, H, P, N)


class Kept(NamedTuple):
    """What backward needs of forward."""

    y: Tensor  # (tokens, H P), float32
    entering: Tensor  # (chunks, H, N, P), both padded to whole vectors: what enters each chunk


def forward(inputs: Inputs, initial: Tensor | None, *, keep: bool) -> tuple[Tensor, Tensor, Kept]:
    """Return y (tokens, H P), the final states, and what was kept (if not asked for: rubbish)."""
    y, final, initial = native.empty_like(inputs.x), inputs.empty_states(), inputs.states(initial)
    if not keep:
        inputs.call("ssd_forward", initial, final, None, y, None)
        return y, final, Kept(y, y)
    H, P, _, N = inputs.sizes
    padded = -(-N // 16) * 16, -(-P // 16) * 16
    entering = final.new_empty(inputs.chunks.count, H, *padded)
    is_wide = y.dtype == torch.float32
    wide = y if is_wide else torch.empty_like(y, dtype=torch.float32)
    inputs.call("ssd_forward", initial, final, entering, y, None if is_wide else wide)
    return y, final, Kept(wide, entering)


class Gradients(NamedTuple):
    """Of the inputs: of tokens flat, as they are given."""

    x: Tensor
    B: Tensor
    C: Tensor
    dt: Tensor
    A: Tensor
    D: Tensor
    initial: Tensor


def backward(
    inputs: Inputs,
    kept: Kept,
    dy: Tensor,
    dfinal: Tensor | None,
    into: Sequence[Tensor],
) -> Gradients:
    """Return the gradients for dy (tokens, H P); those of x, B and C go into three tensors."""
    ddt, dinitial = native.empty_like(inputs.dt), inputs.empty_states()
    per_sequence = ddt.new_empty(2, len(dinitial), ddt.shape[1])
    strides = (t.stride(0) for t in into)
    outputs = *into, ddt, *per_sequence, dinitial, *strides
    inputs.call("ssd_backward", *outputs, dy, *kept, inputs.states(dfinal))
    (dx, dB, dC), (dA, dD) = into, per_sequence.sum(1)
    return Gradients(dx, dB, dC, ddt, dA, dD, dinitial)


def differentiable(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Return y (B, T, H, P) and the final states for x, dt, A, B, C, D, initial and documents."""
    return _Scan.apply(*arguments)  # pyright: ignore


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
        initial: Tensor | None,
        documents: Documents,
    ) -> tuple[Tensor, Tensor]:
        inputs = Inputs.of(x, dt, A, B, C, D, documents)
        y, final, kept = forward(inputs, initial, keep=True)
        ctx.save_for_backward(x, dt, A, B, C, D, *kept)
        ctx.documents = documents
        ctx.initial_dtype = None if initial is None else initial.dtype
        ctx.set_materialize_grads(False)
        return y.view(x.shape), final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, D, *kept = ctx.saved_tensors
        inputs = Inputs.of(x, dt, A, B, C, D, ctx.documents)
        dy = torch.zeros_like(inputs.x) if dy is None else dy.reshape(inputs.x.shape).contiguous()
        into = (native.empty_like(t) for t in (inputs.x, inputs.B, inputs.C))
        found = backward(inputs, Kept(*kept), dy, dfinal, list(into))
        order = found.x, found.dt, found.A, found.B, found.C, found.D
        gradients = (
            g.view(t.shape).to(t.dtype) for g, t in zip(order, (x, dt, A, B, C, D), strict=True)
        )
        dinitial = None if ctx.initial_dtype is None else found.initial.to(ctx.initial_dtype)
        return *gradients, dinitial, None
