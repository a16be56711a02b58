"""The SSD scan by way of the native kernel: `ssd` is the door and explains it.

One call walks all chunks of all sequences. Kept for backward are the inputs, y in float32 and the
state that enters each chunk, as in the torch form.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from plait.kernels import native
from plait.kernels.documents import Documents

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


def _chunks(documents: Documents) -> _Chunks:
    bounds = torch.tensor(documents.bounds)
    ends = (-(-bounds.diff() // _CHUNK)).cumsum(0)
    return _Chunks(bounds, torch.cat([ends.new_zeros(1), ends]), int(ends[-1]))


class _Arguments(NamedTuple):
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
    ) -> "_Arguments":
        num_tokens = x.shape[0] * x.shape[1]
        sizes = (*x.shape[2:], *B.shape[2:])

        def flat(tensor: Tensor) -> Tensor:
            rows = tensor.reshape(num_tokens, tensor.shape[2:].numel())
            return rows if rows.stride(1) == 1 else rows.contiguous()

        steps, vectors = flat(dt).float(), (A.float().contiguous(), D.float().contiguous())
        return cls(flat(x), flat(B), flat(C), steps, *vectors, documents.derived(_chunks), sizes)

    def call(self, name: str, *others: Tensor | int | None) -> None:
        tensors = self.x, self.B, self.C, self.dt, self.A, self.D
        strides = (t.stride(0) for t in tensors[:4])
        bounds, first, _ = self.chunks
        sequences = len(bounds) - 1
        native.call(
            name, self.x.dtype, *tensors, *strides, bounds, first, sequences, *self.sizes, *others
        )

    def states(self, initial: Tensor | None) -> Tensor | None:
        """Return states as the kernel reads them.

        Raises: ValueError if they are not as many as the sequences.
        """
        num_sequences = len(self.chunks.bounds) - 1
        if initial is not None and len(initial) != num_sequences:
            raise ValueError(f"{len(initial)} initial states for {num_sequences} sequences")
        return None if initial is None else initial.float().contiguous()

    def empty_states(self) -> Tensor:
        """Return room for the states of all sequences, (S, H, P, N)."""
        H, P, _, N = self.sizes
        return self.dt.new_empty(len(self.chunks.bounds) - 1, H, P, N)

    def empty_entering(self) -> Tensor:
        """Return room for what enters each chunk, as the kernel keeps it: (N, P), padded."""
        H, P, _, N = self.sizes
        return self.dt.new_empty(self.chunks.count, H, -(-N // 16) * 16, -(-P // 16) * 16)


def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial: Tensor | None,
    documents: Documents,
) -> tuple[Tensor, Tensor]:
    """Return y and the final states, without autograd."""
    arguments = _Arguments.of(x, dt, A, B, C, D, documents)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    final = arguments.empty_states()
    arguments.call("ssd_forward", arguments.states(initial), final, None, y, None)
    return y, final


class Scan(torch.autograd.Function):
    """The same, differentiable once."""

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
        arguments = _Arguments.of(x, dt, A, B, C, D, documents)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        wide = None if y.dtype == torch.float32 else torch.empty_like(y, dtype=torch.float32)
        final, entering = arguments.empty_states(), arguments.empty_entering()
        arguments.call("ssd_forward", arguments.states(initial), final, entering, y, wide)
        ctx.save_for_backward(x, dt, A, B, C, D, y if wide is None else wide, entering)
        ctx.documents = documents
        ctx.initial_dtype = None if initial is None else initial.dtype
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, D, y, entering = ctx.saved_tensors
        arguments = _Arguments.of(x, dt, A, B, C, D, ctx.documents)
        dy = x.new_zeros(x.shape) if dy is None else dy.contiguous()
        dx, dB, dC = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, B, C))
        ddt = torch.empty_like(arguments.dt, memory_format=torch.contiguous_format)
        per_sequence = ddt.new_empty(2, len(arguments.chunks.bounds) - 1, x.shape[2])
        dinitial = None if ctx.initial_dtype is None else arguments.empty_states()
        strides = (t.shape[2:].numel() for t in (dx, dB, dC))
        outputs = dx, dB, dC, ddt, *per_sequence, dinitial, *strides
        dfinal = arguments.states(dfinal)
        arguments.call("ssd_backward", *outputs, dy, y, entering, dfinal)
        dA, dD = per_sequence.sum(1)
        return (
            dx,
            ddt.view(dt.shape).to(dt.dtype),
            dA.to(A.dtype),
            dB,
            dC,
            dD.to(D.dtype),
            None if dinitial is None else dinitial.to(ctx.initial_dtype),
            None,
        )
