"""Where the sequences of a batch lie, and the index tensors that kernels derive from it.

Packed rows carry `cu_seqlens`; every kernel that must keep documents apart turns it into something else (a
chunk-aligned order for the scan, the distance to the document's start for the convolution, a list of bounds
for attention). A model calls some dozens of kernels with the same documents, so a `Documents` computes each of
these once and may be passed wherever a kernel asks for `cu_seqlens`:

    documents = Documents(cu_seqlens)
    for layer in layers:
        ... causal_conv(x, weight, bias, cu_seqlens=documents) ...

An unpacked batch of B rows is the same thing with documents of equal length, one per row.
"""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


class Segment(NamedTuple):
    """A run of chunks in a block that belong to the same step of consecutive sequences (in layout order)."""

    chunks: slice
    """which chunks, counted from the block's first"""
    ranks: slice
    """which sequences, in layout order"""


class Block(NamedTuple):
    """A run of chunks that is small enough to be worked on inside the processor's cache."""

    chunk_length: int
    chunks: slice
    """which chunks of the layout"""
    places: slice
    """the same, counted in tokens"""
    padding: Int[Tensor, " pads"] | None
    """places, counted from the block's first, that hold no token; None if there are none"""
    segments: tuple[Segment, ...]


class ChunkLayout(NamedTuple):
    """A chunk-aligned order of a batch's tokens, in which no chunk holds tokens of two sequences.

    Sequences are ranked by length, longest first, and chunks are ordered by their number within the
    sequence, then by rank: step j holds the j-th chunk of all sequences that are long enough, and the
    recurrence over chunks advances a whole step at once.
    """

    tokens: Int[Tensor, " places"]
    """flat token read at each place; behind a sequence's end its last token, again"""
    places: Int[Tensor, " tokens"]
    """place of each flat token"""
    num_chunks: int
    blocks: tuple[Block, ...]
    rank_of: Int[Tensor, " S"]
    """layout order of each sequence"""
    order: Int[Tensor, " S"]
    """sequence at each rank"""


class Documents:
    """The documents of a packed row (or the rows of a batch) and what kernels need to know of them."""

    def __init__(self, cu_seqlens: Int[Tensor, " S_plus_1"]):
        """Read the bounds.

        Raises: ValueError if they do not start at 0 or ever decrease. Empty documents are allowed.
        """
        self.bounds: list[int] = cu_seqlens.tolist()
        self.device = cu_seqlens.device
        if self.bounds[:1] != [0] or any(stop < start for start, stop in self.spans):
            raise ValueError(f"cu_seqlens is {self.bounds}; it must start at 0 and never decrease")
        self._layouts: dict[tuple[int, int | None], ChunkLayout] = {}
        self._offsets: Tensor | None = None

    @staticmethod
    def of(
        cu_seqlens: "Int[Tensor, ' S_plus_1'] | Documents | None", tokens: Tensor
    ) -> "Documents":
        """Return the documents of a tensor (B, T, ...): as given, or its rows.

        Raises: ValueError if packed documents come with B > 1 or do not end at T.
        """
        num_rows, num_tokens = tokens.shape[:2]
        if cu_seqlens is None:
            return _rows(num_rows, num_tokens, tokens.device)
        documents = cu_seqlens if isinstance(cu_seqlens, Documents) else Documents(cu_seqlens)
        if documents.bounds[-1] != num_tokens or num_rows != 1:
            raise ValueError(
                f"packed documents end at {documents.bounds[-1]}, but the tensor has {num_rows} row(s) "
                f"of {num_tokens} tokens; give one row of exactly the packed length"
            )
        return documents

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First token and end of each document."""
        return list(pairwise(self.bounds))

    def offsets(self) -> Int[Tensor, " T"]:
        """Position of each token in its document."""
        if self._offsets is None:
            lengths = np.diff(self.bounds)
            starts = np.repeat(self.bounds[:-1], lengths)
            self._offsets = torch.from_numpy(np.arange(self.bounds[-1]) - starts).to(self.device)
        return self._offsets

    def chunks(self, chunk_length: int, block_tokens: int | None = None) -> ChunkLayout:
        """Lay the tokens out in chunks, in blocks of about `block_tokens` (None: one block)."""
        key = chunk_length, block_tokens
        if key not in self._layouts:
            self._layouts[key] = _chunk_layout(self.bounds, *key, self.device)
        return self._layouts[key]


@lru_cache(maxsize=8)
def _rows(num_rows: int, num_tokens: int, device: torch.device) -> Documents:
    return Documents(torch.arange(num_rows + 1, device=device) * num_tokens)


def _chunk_layout(
    bounds: list[int], chunk_length: int, block_tokens: int | None, device: torch.device
) -> ChunkLayout:
    starts, ends = np.array(bounds[:-1], dtype=np.int64), np.array(bounds[1:], dtype=np.int64)
    num_chunks = -(-(ends - starts) // chunk_length)
    order = np.argsort(-num_chunks, kind="stable")
    num_steps = int(num_chunks.max(initial=0))
    step, rank = np.nonzero(np.arange(num_steps)[:, None] < num_chunks[order])
    first = starts[order][rank] + step * chunk_length
    end = ends[order][rank][:, None]
    tokens = first[:, None] + np.arange(chunk_length)
    valid = (tokens < end).reshape(-1)
    tokens = np.minimum(tokens, end - 1).reshape(-1)
    places = np.empty(bounds[-1], dtype=np.int64)
    places[tokens[valid]] = np.flatnonzero(valid)
    per_block = len(step) if block_tokens is None else block_tokens // chunk_length

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    def block(start: int, stop: int) -> Block:
        places = slice(start * chunk_length, stop * chunk_length)
        padding = np.flatnonzero(~valid[places])
        return Block(
            chunk_length=chunk_length,
            chunks=slice(start, stop),
            places=places,
            padding=tensor(padding) if len(padding) else None,
            segments=_segments(step, start, stop),
        )

    cuts = [*range(0, len(step), max(per_block, 1)), len(step)]
    return ChunkLayout(
        tokens=tensor(tokens),
        places=tensor(places),
        num_chunks=len(step),
        blocks=tuple(block(start, stop) for start, stop in pairwise(cuts)),
        rank_of=tensor(np.argsort(order)),
        order=tensor(order),
    )


def _segments(step: np.ndarray, start: int, stop: int) -> tuple[Segment, ...]:
    """Cut chunks start..stop into the runs that the recurrence can advance at once."""
    cuts = [start, *(start + 1 + np.flatnonzero(np.diff(step[start:stop]))).tolist(), stop]
    # ranks count from 0 in every step, so a chunk's rank is its distance to the step's first chunk
    ranks = [low - int(np.searchsorted(step, step[low])) for low in cuts[:-1]]
    return tuple(
        Segment(slice(low - start, high - start), slice(rank, rank + high - low))
        for (low, high), rank in zip(pairwise(cuts), ranks, strict=True)
    )
