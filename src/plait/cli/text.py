"""Text for compression and distillation: conversations, a blend, or both in proportion.

Conversations are read by `align`, blends by `data`; `compress`, which may not know the former, is
handed a function.
"""

import random
from collections.abc import Mapping
from pathlib import Path

from plait.align.batches import SampleBatches
from plait.align.records import Refusals, read_records
from plait.align.sft import build_samples
from plait.compress.batches import Proportion
from plait.compress.distill_stage import TextSource
from plait.core.errors import ConfigError, DataError
from plait.data.blend import Blend
from plait.data.loader import BlendLoader
from plait.data.pack import Sample
from plait.data.tokenizer import Tokenizer
from plait.train.loop import Batches

ROLES = ("conversations", "blend")
_LONGEST = 10**9
_READ_AT_ONCE = 256


def text_source(
    inputs: Mapping[str, Path], tokenizer_from: Path, conversation_share: float
) -> TextSource:
    """Return a function that gives batches of the text in `inputs`, tokenised for a model.

    `conversations` is a JSONL file or a run folder with `data/train.jsonl`, `blend` the folder of a
    blend; the share counts where both are there.
    Raises: ConfigError if neither is there, or the blend was made with another tokenizer; DataError
    for unusable conversations.
    """
    if not any(role in inputs for role in ROLES):
        raise ConfigError(
            f"needs text: name an earlier stage or a path under [inputs] as {' or '.join(ROLES)}"
        )
    tokenizer = Tokenizer.from_directory(tokenizer_from)
    spoken = (
        _Conversations(inputs["conversations"], tokenizer) if "conversations" in inputs else None
    )
    blend = inputs.get("blend")
    if blend is not None and Blend.read(blend).vocab_size != tokenizer.vocab_size:
        raise ConfigError(
            f"{blend} was tokenised with {Blend.read(blend).vocab_size} ids, the model of "
            f"{tokenizer_from} has {tokenizer.vocab_size}: give a blend of the model's tokenizer"
        )

    def source(sequence_tokens: int, rows_per_batch: int, num_batches: int, seed: int) -> Batches:
        tokens_per_batch = sequence_tokens * rows_per_batch

        def conversations(number: int) -> Batches:
            assert spoken is not None
            samples = spoken.samples(number * tokens_per_batch)
            short = [sample for sample in samples if len(sample.ids) <= sequence_tokens]
            if not short:
                raise DataError(f"no conversation has at most {sequence_tokens} tokens; allow more")
            return SampleBatches(short, tokens_per_batch, seed)

        def documents(number: int) -> Batches:
            assert blend is not None
            return BlendLoader(
                blend,
                total_tokens=number * tokens_per_batch,
                sequence_tokens=sequence_tokens,
                rows_per_batch=rows_per_batch,
                seed=seed,
            )

        if blend is None:
            return conversations(num_batches)
        if spoken is None:
            return documents(num_batches)
        # One more than its share: where a share falls between two batches, either may be drawn.
        of_blend = round(num_batches * (1 - conversation_share)) + 1
        first = conversations(num_batches - of_blend + 1)
        return Proportion(first, documents(of_blend), conversation_share)

    return source


class _Conversations:
    """Conversations of a file in an order of their own, tokenised as far as they are asked for."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        nested = path / "data" / "train.jsonl"
        file = nested if nested.is_file() else path
        if not file.is_file():
            raise ConfigError(f"{path}: neither a JSONL file nor a folder with data/train.jsonl")
        self._records = list(read_records([file], Refusals(strict=True)))
        if not self._records:
            raise DataError(f"{file}: holds no conversations; give text to measure on")
        random.Random(0).shuffle(self._records)
        self._tokenizer = tokenizer
        self._samples: list[Sample] = []
        self._num_read = self._num_tokens = 0

    def samples(self, num_tokens: int) -> list[Sample]:
        """Return the first samples that hold so many tokens, or all."""
        while self._num_tokens < num_tokens and self._num_read < len(self._records):
            part = self._records[self._num_read : self._num_read + _READ_AT_ONCE]
            found = build_samples(part, self._tokenizer, _LONGEST).samples
            self._samples += found
            self._num_tokens += sum(len(sample.ids) for sample in found)
            self._num_read += len(part)
        return self._samples
