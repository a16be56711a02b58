"""Pack training samples of many lengths into rows, never splitting one.

For conversations and other samples that must stay whole; pretraining text is cut at row ends
instead (see `loader`).
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

from plait.data.loader import PackedBatch


class Sample(NamedTuple):
    """Token ids of one training sample and, for each, the weight of predicting it.

    The first weight counts for nothing: no position predicts the first token.
    """

    ids: Sequence[int]
    weights: Sequence[float]


# Bins kept open while packing: more fill rows better, fewer keep samples near their neighbours.
OPEN_BINS = 32


def first_fit(lengths: Iterable[int], capacity: int) -> Iterator[list[int]]:
    """Yield groups of indices whose lengths add up to at most `capacity`.

    Each length goes to the oldest of at most 32 open groups that has room; when none has, the
    oldest is given out. Deterministic, in near-input order. Every index comes out exactly once.
    Raises: ValueError for a length over the capacity.
    """
    bins: deque[tuple[list[int], list[int]]] = deque()  # (indices, [room left])
    for index, length in enumerate(lengths):
        if length > capacity:
            raise ValueError(f"sample {index} has {length} tokens, more than the row's {capacity}")
        for indices, room in bins:
            if length <= room[0]:
                indices.append(index)
                room[0] -= length
                break
        else:
            if len(bins) == OPEN_BINS:
                yield bins.popleft()[0]
            bins.append(([index], [capacity - length]))
    for indices, _ in bins:
        yield indices


def pack(samples: Sequence[Sample]) -> PackedBatch:
    """Put samples one after another into one row.

    Targets are the next token of the same sample; the last position of each has weight 0.
    Numerics: int64 tokens and targets, float32 weights, int32 cu_seqlens.
    Raises: ValueError for an empty sample or one with more or fewer weights than ids.
    """
    tokens: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    boundaries = [0]
    for sample in samples:
        if not sample.ids or len(sample.ids) != len(sample.weights):
            raise ValueError(
                f"a sample has {len(sample.ids)} ids and {len(sample.weights)} weights"
            )
        tokens += sample.ids
        targets += [*sample.ids[1:], sample.ids[-1]]
        weights += [*sample.weights[1:], 0.0]
        boundaries.append(len(tokens))
    return PackedBatch(
        torch.tensor(tokens, dtype=torch.int64)[None],
        torch.tensor(targets, dtype=torch.int64)[None],
        torch.tensor(weights, dtype=torch.float32)[None],
        torch.tensor(boundaries, dtype=torch.int32),
    )
