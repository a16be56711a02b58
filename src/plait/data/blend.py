"""Tokenise curated documents into shards and fix the blend that training draws from them.

The stage writes one Megatron shard for each split and category, every document ending in `</s>`,
and `blend.json` with sizes and the phases. How many rows each category gives is settled later,
when the length of training is known (`loader`).
"""

import io
import itertools
import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from pydantic import field_validator

from plait.core.artifact import write_atomic, write_json
from plait.core.config import Settings, nearest
from plait.core.errors import ConfigError, DataError
from plait.core.progress import track
from plait.core.recipe import inputs_of
from plait.data.documents import document_files, read_documents
from plait.data.indexed import ShardWriter, TokenShard, idx_path
from plait.data.mixture import Phase
from plait.data.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation")
_BATCH_CHARACTERS = 2_000_000
_CHUNK_TOKENS = 1 << 22


class BlendSettings(Settings):
    """Settings of the stage `blend`."""

    phases: tuple[Phase, ...]
    """Weights by stretches of training. The report switches at 60 % and 90 % and shows the weights
    only as a figure, so weights are our choice: diverse first, high quality later."""
    max_epochs: float = 8.0
    """Most often that training may see a category. Source: Nemotron-H, at most 4-8 epochs."""
    optional: tuple[str, ...] = ()
    """Categories that curation may have left out for want of pages; the others share their
    weight."""
    unused: tuple[str, ...] = ()
    """Categories of documents that this blend leaves for another one."""

    @field_validator("phases")
    @classmethod
    def _in_order(cls, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        ends = [phase.until for phase in phases]
        if not ends or ends[-1] != 1.0 or any(a >= b for a, b in itertools.pairwise([0.0, *ends])):
            raise ValueError(
                f"phases must end at rising shares of training, the last at 1.0: {ends}"
            )
        return phases


class ShardSize(Settings):
    """What a shard holds."""

    documents: int
    tokens: int
    """Including the end of each document."""
    bytes: int
    """UTF-8 length of the text."""


class Blend(Settings):
    """The content of blend.json: what there is and how training draws from it."""

    vocab_size: int
    phases: tuple[Phase, ...]
    max_epochs: float
    train: dict[str, ShardSize]
    validation: dict[str, ShardSize]

    @classmethod
    def read(cls, directory: Path) -> "Blend":
        """Read the blend of a finished stage.

        Raises: DataError if the folder holds none.
        """
        file = directory / "blend.json"
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError) as error:
            raise DataError(
                f"{file}: not a finished blend; run the blend stage ({error})"
            ) from None


def shard_prefix(directory: Path, split: str, category: str) -> Path:
    """Return where a blend folder keeps a shard, without .bin or .idx."""
    return directory / split / category


def read_token_num_bytes(directory: Path) -> np.ndarray:
    """Return how many bytes of text each token id stands for; 0 for special tokens."""
    return np.load(directory / "token_num_bytes.npy")


def run(settings: BlendSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Write shards and blend.json to `out` from all `documents` and `inputs["tokenizer"]`.

    A category's shard holds its documents of every folder, folder by folder.
    Shards that stand in `out` are kept: they come from an interrupted run on the same inputs.
    Raises: ConfigError if weights and categories do not match; DataError for an empty category.
    """
    tokenizer = Tokenizer.from_directory(inputs["tokenizer"])
    folders = inputs_of(inputs, "documents")
    files = {split: _used(settings, folders, split) for split in SPLITS}
    phases = _phases_of(settings, files["train"], ", ".join(map(str, folders)))
    num_bytes = np.array([len(text) for text in tokenizer.token_bytes], dtype=np.int32)
    sizes: dict[str, dict[str, ShardSize]] = {split: {} for split in SPLITS}
    for split in SPLITS:
        for category, found in files[split].items():
            prefix = shard_prefix(out, split, category)
            if not idx_path(prefix).exists():
                _write_shard(prefix, found, tokenizer, f"{split}/{category}")
            sizes[split][category] = _measure(prefix, num_bytes)
    empty = [name for name, size in sizes["train"].items() if not size.tokens]
    if empty:
        raise DataError(f"{', '.join(map(str, folders))}: no training text in {', '.join(empty)}")
    _save_array(out / "token_num_bytes.npy", num_bytes)
    blend = Blend(
        vocab_size=tokenizer.vocab_size,
        phases=phases,
        max_epochs=settings.max_epochs,
        **sizes,
    )
    write_json(out / "blend.json", blend.model_dump())
    return _summary(blend)


def _used(settings: BlendSettings, folders: Sequence[Path], split: str) -> dict[str, list[Path]]:
    files = document_files(folders, split)
    return {name: found for name, found in files.items() if name not in settings.unused}


def _phases_of(settings: BlendSettings, files: Collection[str], folders: str) -> tuple[Phase, ...]:
    """Return the phases without optional categories that are missing; check all others."""
    missing = {name for name in settings.optional if name not in files}
    if missing:
        logger.warning("no documents of category %s: left out of the blend", ", ".join(missing))
    phases = tuple(phase.without(missing) for phase in settings.phases)
    weighted = {name for phase in phases for name in phase.weights}
    for name in sorted(weighted - set(files)):
        raise ConfigError(
            f"phases give a weight to {name!r}, which has no documents in {folders}; "
            + nearest(name, list(files))
        )
    for name in sorted(set(files) - weighted):
        raise ConfigError(
            f"{folders} holds documents of category {name!r}, which no phase gives a weight; "
            "give it one, list it under unused or remove it from the curation stage"
        )
    return phases


def _write_shard(prefix: Path, files: Sequence[Path], tokenizer: Tokenizer, name: str) -> None:
    with ShardWriter(prefix, tokenizer.vocab_size) as shard:
        for texts in _batches(track(read_documents(files), f"blend {name}", unit="documents")):
            for ids in tokenizer.encode_plain_batch(texts):
                shard.add([*ids, tokenizer.eos_id])


def _batches(documents: Iterator[dict]) -> Iterator[list[str]]:
    """Group texts, so that all cores have work and memory stays bounded; skip empty ones."""
    texts: list[str] = []
    num_characters = 0
    for document in documents:
        if document["text"]:
            texts.append(document["text"])
            num_characters += len(document["text"])
        if num_characters > _BATCH_CHARACTERS:
            yield texts
            texts, num_characters = [], 0
    if texts:
        yield texts


def _measure(prefix: Path, num_bytes: np.ndarray) -> ShardSize:
    shard = TokenShard(prefix)
    chunks = range(0, shard.tokens.size, _CHUNK_TOKENS)
    total = sum(int(num_bytes[shard.tokens[i : i + _CHUNK_TOKENS]].sum()) for i in chunks)
    return ShardSize(documents=len(shard), tokens=shard.tokens.size, bytes=total)


def _save_array(file: Path, values: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values)
    write_atomic(file, buffer.getvalue())


def _summary(blend: Blend) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for split, sizes in (("train", blend.train), ("validation", blend.validation)):
        metrics[f"{split}_tokens"] = float(sum(size.tokens for size in sizes.values()))
        for name, size in sizes.items():
            metrics[f"{split}_tokens.{name}"] = float(size.tokens)
    for name, size in blend.train.items():
        metrics[f"bytes_per_token.{name}"] = size.bytes / size.tokens
    return metrics
