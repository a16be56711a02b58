"""Token batches for training and validation.

A packed batch is one row in which documents stand one after another; `cu_seqlens` says where each
one begins, and no layer of the model looks across such a boundary.

`BlendLoader` deals rows from the shards of a blend. For each category, imagine its documents
written one after another in a shuffled order, then again in another order for the next epoch,
without end; row j of the category is tokens j T .. (j+1) T of that tape. Which category gives the
next row is settled by `mixture`. So row k of training depends on k and the seed alone, and
resuming needs only k.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from plait.core.errors import CheckpointError, ConfigError, DataError
from plait.core.seed import mix_seed
from plait.data.blend import Blend, read_token_num_bytes, shard_prefix
from plait.data.indexed import TokenShard
from plait.data.mixture import Mixture


class PackedBatch(NamedTuple):
    """One packed row. `weights` is 0 where nothing is learnt; there `targets` has no meaning."""

    tokens: Int[Tensor, "1 T"]
    targets: Int[Tensor, "1 T"]
    weights: Float[Tensor, "1 T"]
    cu_seqlens: Int[Tensor, " S+1"]


class BatchSource(Protocol):
    """Gives batches forever or until StopIteration, and can be put back to any earlier place."""

    def __next__(self) -> PackedBatch:
        """Return the next batch."""
        ...

    def state(self) -> dict[str, Any]:
        """Return the place as JSON values."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go to a place that `state` gave."""
        ...


class BlendLoader:
    """Training batches of `rows_per_batch` rows of `sequence_tokens` tokens, each one packed row.

    The run is `total_tokens` long, rounded up to whole batches of all ranks; then it stops. Ranks
    of a `world` share each batch: rank r takes the r-th `rows_per_batch` rows of it.
    Raises: ConfigError if a category would be seen more often than the blend's `max_epochs`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        total_tokens: int,
        sequence_tokens: int,
        rows_per_batch: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        blend = Blend.read(directory)
        self._rows_per_batch, self._rank, self._world = rows_per_batch, rank, world
        rows_per_step = rows_per_batch * world
        num_batches = -(-total_tokens // (sequence_tokens * rows_per_step))
        self._mixture = Mixture(blend.phases, num_batches * rows_per_step)
        self._tapes = {
            name: _Tape(shard_prefix(directory, "train", name), sequence_tokens, seed)
            for name in self._mixture.categories
        }
        self._row = 0
        self._order = {
            "seed": seed,
            "sequence_tokens": sequence_tokens,
            "total_rows": self._mixture.total_rows,
            "blend": hashlib.sha256(blend.model_dump_json().encode()).hexdigest(),
        }
        self._check_epochs(blend.max_epochs, sequence_tokens)

    @property
    def num_batches(self) -> int:
        """Batches in the whole run."""
        return self._mixture.total_rows // (self._rows_per_batch * self._world)

    def epochs(self) -> dict[str, float]:
        """Return how often the whole run sees each category."""
        return {
            name: rows * self._tapes[name].row_tokens / self._tapes[name].num_tokens
            for name, rows in self._mixture.rows_of().items()
        }

    def __iter__(self) -> "BlendLoader":
        return self

    def __next__(self) -> PackedBatch:
        following = self._row + self._rows_per_batch * self._world
        if following > self._mixture.total_rows:
            raise StopIteration
        first = self._row + self._rank * self._rows_per_batch
        spans: list[_Span] = []
        for row in range(first, first + self._rows_per_batch):
            category, rank = self._mixture.draw(row)
            spans += self._tapes[category].row(rank)
        self._row = following
        return _to_batch(spans)

    def state(self) -> dict[str, Any]:
        """Return the next row and what the order of rows depends on; the same on every rank."""
        return {"row": self._row, **self._order}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on at the row of `state`; ranks and rows per batch may have changed since.

        Raises: CheckpointError if the rows would now come in another order.
        """
        for name, value in self._order.items():
            if state.get(name) != value:
                raise CheckpointError(
                    f"the checkpoint's data order has {name} = {state.get(name)!r}, this run has "
                    f"{value!r}: resume with the old settings or start in a new folder"
                )
        self._row = state["row"]

    def describe(self, state: dict[str, Any]) -> str:
        """Say which rows of which categories the batch drawn at a place holds."""
        first = state["row"] + self._rank * self._rows_per_batch
        rows = range(first, min(first + self._rows_per_batch, self._mixture.total_rows))
        draws = [self._mixture.draw(row) for row in rows]
        return ", ".join(f"row {draw.rank} of {draw.category}" for draw in draws)

    def _check_epochs(self, max_epochs: float, sequence_tokens: int) -> None:
        for name, epochs in self.epochs().items():
            if epochs > max_epochs:
                drawn = self._mixture.rows_of()[name] * sequence_tokens
                raise ConfigError(
                    f"category {name!r}: training draws {drawn:,} tokens from the "
                    f"{self._tapes[name].num_tokens:,} there are, {epochs:.1f} epochs, and the "
                    f"blend's max_epochs is {max_epochs:g}: lower its weights or the number of "
                    "tokens, add documents, or raise max_epochs"
                )


class ValidationBatch(NamedTuple):
    """A batch to score, and how many bytes of text its scored tokens stand for."""

    batch: PackedBatch
    num_bytes: int


def validation_batches(
    directory: Path, category: str, tokens_per_batch: int
) -> Iterator[ValidationBatch]:
    """Yield the validation documents of a category in order, cut at batch ends.

    Every token but the first of each document is scored once, `</s>` included, so the bits of all
    batches over their bytes are bits per byte of the text after the first token.
    Raises: DataError if the category has no validation text.
    """
    prefix = shard_prefix(directory, "validation", category)
    shard = TokenShard(prefix)
    if not shard.tokens.size:
        raise DataError(f"{prefix}: no validation text")
    num_bytes = read_token_num_bytes(directory)
    order = np.arange(len(shard))
    for start in range(0, shard.tokens.size, tokens_per_batch):
        length = min(tokens_per_batch, shard.tokens.size - start)
        batch = _to_batch(_spans(shard, order, shard.starts[1:], start, length))
        scored = batch.targets[batch.weights > 0].numpy()
        yield ValidationBatch(batch, int(num_bytes[scored].sum()))


class _Span(NamedTuple):
    """A stretch of one document; `following` has one token more unless the document ends here."""

    tokens: np.ndarray
    following: np.ndarray


class _Tape:
    """The documents of a category, endlessly, in a new order each epoch."""

    def __init__(self, prefix: Path, row_tokens: int, seed: int) -> None:
        self._shard = TokenShard(prefix)
        self._seed_parts = (seed, "blend", prefix.name)
        self._lengths = np.diff(self._shard.starts)
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.row_tokens = row_tokens
        self.num_tokens = int(self._shard.tokens.size)

    def row(self, index: int) -> list[_Span]:
        """Return tokens index * row_tokens .. (index + 1) * row_tokens of the tape."""
        spans: list[_Span] = []
        position, missing = index * self.row_tokens, self.row_tokens
        while missing:
            epoch, start = divmod(position, self.num_tokens)
            length = min(missing, self.num_tokens - start)
            spans += _spans(self._shard, *self._order(epoch), start, length)
            position += length
            missing -= length
        return spans

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the documents in the epoch's order, and where each ends."""
        if epoch not in self._epochs:
            generator = np.random.Generator(np.random.PCG64(mix_seed(*self._seed_parts, epoch)))
            order = generator.permutation(len(self._lengths))
            while len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = order, np.cumsum(self._lengths[order])
        return self._epochs[epoch]


def _spans(
    shard: TokenShard, order: np.ndarray, ends: np.ndarray, start: int, length: int
) -> list[_Span]:
    """Return tokens start .. start + length of the documents in `order`, which end at `ends`."""
    spans: list[_Span] = []
    place = int(np.searchsorted(ends, start, side="right"))
    while length:
        document = shard[int(order[place])]
        begin = start - (int(ends[place]) - document.size)
        tokens = document[begin : begin + length]
        if tokens.size:
            spans.append(_Span(tokens, document[begin + 1 : begin + 1 + tokens.size]))
        start += tokens.size
        length -= tokens.size
        place += 1
    return spans


def _to_batch(spans: list[_Span]) -> PackedBatch:
    boundaries = np.cumsum([0, *(span.tokens.size for span in spans)], dtype=np.int32)
    tokens = np.concatenate([span.tokens for span in spans]).astype(np.int64)
    targets = tokens.copy()
    weights = np.zeros(tokens.size, np.float32)
    for begin, span in zip(boundaries, spans, strict=False):
        targets[begin : begin + span.following.size] = span.following
        weights[begin : begin + span.following.size] = 1.0
    return PackedBatch(
        torch.from_numpy(tokens)[None],
        torch.from_numpy(targets)[None],
        torch.from_numpy(weights)[None],
        torch.from_numpy(boundaries),
    )
