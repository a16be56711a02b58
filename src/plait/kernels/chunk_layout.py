"""The order in which the SSD scan takes its tokens: whole chunks, none with two sequences in it."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from plait.kernels.documents import Documents


class Segment(NamedTuple):
    """A run of chunks that belong to the same step of sequences with consecutive ranks."""

    chunks: slice
    """which chunks, counted from the block's first"""
    ranks: slice
    """which sequences, by rank"""


class Block(NamedTuple):
    """A run of chunks that is small enough to be worked on inside the processor's cache."""

    chunk_length: int
    chunks: slice
    """which chunks of the layout"""
    places: slice
    """the same, counted in tokens"""
    tokens: Int[Tensor, " places"] | slice
    """flat token read at each place, for `take`"""
    padding: Int[Tensor, " pads"] | None
    """places, counted from the block's first, that hold no token; None if there are none"""
    segments: tuple[Segment, ...]


class ChunkLayout(NamedTuple):
    """A chunk-aligned order of a batch's tokens, in which no chunk holds tokens of two sequences.

    Sequences are ranked by length, longest first, and chunks are ordered by their number within the
    sequence, then by rank: step j holds the j-th chunk of all sequences that are long enough, and
    the recurrence over chunks advances a whole step at once.
    """

    tokens: Int[Tensor, " places"]
    """flat token read at each place; behind a sequence's end its last token, again"""
    places: Int[Tensor, " tokens"]
    """place of each flat token"""
    read_back: Int[Tensor, " tokens"] | slice
    """the same, for `take`"""
    num_chunks: int
    blocks: tuple[Block, ...]
    rank_of: Int[Tensor, " S"]
    """layout order of each sequence"""
    order: Int[Tensor, " S"]
    """sequence at each rank"""


def take(flat: Tensor, rows: Tensor | slice) -> Tensor:
    """Return rows of a flat tensor: a view if they lie side by side, else a copy."""
    return flat[rows] if isinstance(rows, slice) else flat.index_select(0, rows)


def chunk_layout(
    documents: Documents, chunk_length: int, block_tokens: int | None, device: torch.device
) -> ChunkLayout:
    """Lay the tokens out in chunks, in blocks of about `block_tokens` (None: one block)."""
    bounds = documents.bounds
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

    def run_or_index(rows: np.ndarray) -> Tensor | slice:
        is_run = len(rows) > 0 and bool((np.diff(rows) == 1).all())
        return slice(int(rows[0]), int(rows[-1]) + 1) if is_run else tensor(rows)

    def block(start: int, stop: int) -> Block:
        places = slice(start * chunk_length, stop * chunk_length)
        padding = np.flatnonzero(~valid[places])
        return Block(
            chunk_length=chunk_length,
            chunks=slice(start, stop),
            places=places,
            tokens=run_or_index(tokens[places]),
            padding=tensor(padding) if len(padding) else None,
            segments=_segments(step, start, stop),
        )

    cuts = [*range(0, len(step), max(per_block, 1)), len(step)]
    return ChunkLayout(
        tokens=tensor(tokens),
        places=tensor(places),
        read_back=run_or_index(places),
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
