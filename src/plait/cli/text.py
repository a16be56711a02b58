"""Text for compression and distillation: conversations, documents, or both in proportion.

Conversations are read by `align`, documents and blends of them by `data`; `compress`, which may not
know the former, is handed a function.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.align.batches import EpochBatches
from plait.align.records import Refusals, read_records
from plait.align.sft import build_samples
from plait.compress.batches import Proportion
from plait.compress.distill_stage import TextSource
from plait.core.errors import ConfigError, DataError
from plait.data.blend import Blend
from plait.data.documents import document_files, read_documents
from plait.data.loader import BlendLoader
from plait.data.pack import Sample, pack
from plait.data.tokenizer import Tokenizer
from plait.train.loop import Batches

ROLES = ("conversations", "documents", "blend")
_LONGEST = 10**9
_READ_AT_ONCE = 256


def text_source(
    inputs: Mapping[str, Path], tokenizer_from: Path, conversation_share: float
) -> TextSource:
    """Return a function that gives batches of the text in `inputs`, tokenised for a model.

    `conversations` is a JSONL file or a run folder with `data/train.jsonl`; `documents` a JSONL
    file or the folder of a curation, `blend` that of a blend. The share counts where there are both
    conversations and one of the others; at 0 or 1 the one that has no share is not read.
    Raises: ConfigError if none is there, or documents and a blend, or the blend was made with
    another tokenizer; DataError for unusable text.
    """
    if not any(role in inputs for role in ROLES):
        raise ConfigError(
            f"needs text: name an earlier stage or a path under [inputs] as {' or '.join(ROLES)}"
        )
    if "documents" in inputs and "blend" in inputs:
        raise ConfigError("both documents and a blend of documents are given; give one of them")
    unread = _without_share(inputs, conversation_share)
    inputs = {role: path for role, path in inputs.items() if role not in unread}
    tokenizer = Tokenizer.from_directory(tokenizer_from)
    spoken = (
        _conversations(inputs["conversations"], tokenizer) if "conversations" in inputs else None
    )
    if "blend" in inputs:
        written = _blend(inputs["blend"], tokenizer, tokenizer_from)
    elif "documents" in inputs:
        written = _documents(inputs["documents"], tokenizer)
    else:
        written = None

    def source(
        sequence_tokens: int, rows_per_batch: int, num_batches: int, seed: int, *, num_new: int = 0
    ) -> Batches:
        size = sequence_tokens, rows_per_batch
        if spoken is None or written is None:
            [only] = [each for each in (spoken, written) if each is not None]
            return only(*size, num_batches, seed, num_new=num_new)
        # One more than its share: where a share falls between two batches, either may be drawn.
        num_written = round(num_batches * (1 - conversation_share)) + 1
        num_spoken = max(num_batches - num_written + 1, 1)
        new_spoken = round(num_new * conversation_share)
        return Proportion(
            spoken(*size, num_spoken, seed, num_new=new_spoken),
            written(*size, num_written, seed, num_new=num_new - new_spoken),
            conversation_share,
        )

    return source


def _without_share(inputs: Mapping[str, Path], conversation_share: float) -> tuple[str, ...]:
    """Return the roles of which nothing is to be drawn although both kinds of text are given."""
    both = "conversations" in inputs and ("documents" in inputs or "blend" in inputs)
    if both and conversation_share == 0:
        return ("conversations",)
    return ("documents", "blend") if both and conversation_share == 1 else ()


def _conversations(path: Path, tokenizer: Tokenizer) -> TextSource:
    nested = path / "data" / "train.jsonl"
    file = nested if nested.is_file() else path
    if not file.is_file():
        raise ConfigError(f"{path}: neither a JSONL file nor a folder with data/train.jsonl")
    records = list(read_records([file], Refusals(strict=True)))
    if not records:
        raise DataError(f"{file}: holds no conversations; give text to measure on")
    samples = _Samples(records, lambda part: build_samples(part, tokenizer, _LONGEST).samples)

    def source(
        sequence_tokens: int, rows_per_batch: int, num_batches: int, seed: int, *, num_new: int = 0
    ) -> Batches:
        tokens_per_batch = sequence_tokens * rows_per_batch
        short = samples.first(num_batches * tokens_per_batch, sequence_tokens)
        if not short:
            raise DataError(
                f"{file}: no conversation has at most {sequence_tokens} tokens; allow longer rows"
            )
        _check_length(file, short, num_new * tokens_per_batch)
        return _packed(short, tokens_per_batch, seed)

    return source


def _documents(path: Path, tokenizer: Tokenizer) -> TextSource:
    by_category = {"": [path]} if path.is_file() else document_files([path], "train")
    files = [file for category in by_category.values() for file in category]
    records = [record for record in read_documents(files) if record["text"]]
    if not records:
        raise DataError(f"{path}: holds no documents; give text to measure on")

    def tokenise(part: Sequence[Mapping[str, Any]]) -> list[Sample]:
        texts = [record["text"] for record in part]
        found = ([*ids, tokenizer.eos_id] for ids in tokenizer.encode_plain_batch(texts))
        return [Sample(ids, [1.0] * len(ids)) for ids in found]

    samples = _Samples(records, tokenise)

    def source(
        sequence_tokens: int, rows_per_batch: int, num_batches: int, seed: int, *, num_new: int = 0
    ) -> Batches:
        tokens_per_batch = sequence_tokens * rows_per_batch
        pieces = [
            Sample(ids[start : start + sequence_tokens], weights[start : start + sequence_tokens])
            for ids, weights in samples.first(num_batches * tokens_per_batch)
            for start in range(0, len(ids), sequence_tokens)
        ]
        _check_length(path, pieces, num_new * tokens_per_batch)
        return _packed(pieces, tokens_per_batch, seed)

    return source


def _blend(path: Path, tokenizer: Tokenizer, tokenizer_from: Path) -> TextSource:
    vocab_size = Blend.read(path).vocab_size
    if vocab_size != tokenizer.vocab_size:
        raise ConfigError(
            f"{path} was tokenised with {vocab_size} ids, the model of {tokenizer_from} has "
            f"{tokenizer.vocab_size}: give a blend of the model's tokenizer"
        )

    def source(
        sequence_tokens: int, rows_per_batch: int, num_batches: int, seed: int, *, num_new: int = 0
    ) -> Batches:
        loader = BlendLoader(
            path,
            total_tokens=num_batches * sequence_tokens * rows_per_batch,
            sequence_tokens=sequence_tokens,
            rows_per_batch=rows_per_batch,
            seed=seed,
        )
        category, epochs = max(loader.epochs().items(), key=lambda item: item[1])
        if epochs * num_new > num_batches:
            raise DataError(
                f"{path}: {category!r} would be repeated before {num_new:,} rows of "
                f"{sequence_tokens:,} tokens have been read; {_SHORTER}"
            )
        return loader

    return source


_SHORTER = "give more text or lower calibration_rows, held_out_rows or row_tokens"


def _check_length(path: Path, samples: Sequence[Sample], num_needed: int) -> None:
    """Raise DataError if samples have fewer tokens than are to be read before they are repeated."""
    num_tokens = sum(len(sample.ids) for sample in samples)
    if num_tokens < num_needed:
        raise DataError(
            f"{path}: {len(samples):,} texts that fit a row have {num_tokens:,} tokens, "
            f"{num_needed:,} are needed to measure and to compare on; {_SHORTER}"
        )


def _packed(samples: Sequence[Sample], tokens_per_batch: int, seed: int) -> Batches:
    """Return endless batches of one packed row."""
    lengths = [len(sample.ids) for sample in samples]
    return EpochBatches(
        lengths, tokens_per_batch, seed, lambda group: pack([samples[index] for index in group])
    )


class _Samples:
    """Records in an order of their own, tokenised as far as they are asked for."""

    def __init__(
        self, records: list[dict[str, Any]], tokenise: Callable[[list[dict]], list[Sample]]
    ) -> None:
        random.Random(0).shuffle(records)
        self._records, self._tokenise = records, tokenise
        self._samples: list[Sample] = []
        self._num_read = 0

    def first(self, num_tokens: int, longest: int = _LONGEST) -> list[Sample]:
        """Return samples of at most `longest` tokens: the first that hold so many, or all such.

        What an earlier call has tokenised is returned with them.
        """
        fitting = [sample for sample in self._samples if len(sample.ids) <= longest]
        num_found = sum(len(sample.ids) for sample in fitting)
        while num_found < num_tokens and self._num_read < len(self._records):
            part = self._records[self._num_read : self._num_read + _READ_AT_ONCE]
            found = self._tokenise(part)
            self._samples += found
            self._num_read += len(part)
            new = [sample for sample in found if len(sample.ids) <= longest]
            fitting += new
            num_found += sum(len(sample.ids) for sample in new)
        return fitting
