"""Text for compression and distillation: conversations, a blend, or both in proportion.

Conversations are read by `align`, blends by `data`; `compress`, which may not know the former, is
handed a function.
"""

from collections.abc import Mapping
from pathlib import Path

from plait.align.sft import SampleBatches, build_samples, read_conversations
from plait.compress.batches import Proportion
from plait.compress.distill_stage import TextSource
from plait.core.errors import ConfigError, DataError
from plait.core.progress import track
from plait.data.blend import Blend
from plait.data.loader import BlendLoader
from plait.data.pack import Sample
from plait.data.tokenizer import Tokenizer
from plait.train.loop import Batches

ROLES = ("conversations", "blend")
_LONGEST = 10**9


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
    samples = _samples(inputs["conversations"], tokenizer) if "conversations" in inputs else []
    blend = inputs.get("blend")
    if blend is not None and Blend.read(blend).vocab_size != tokenizer.vocab_size:
        raise ConfigError(
            f"{blend} was tokenised with {Blend.read(blend).vocab_size} ids, the model of "
            f"{tokenizer_from} has {tokenizer.vocab_size}: give a blend of the model's tokenizer"
        )

    def source(sequence_tokens: int, rows_per_batch: int, num_batches: int, seed: int) -> Batches:
        tokens_per_batch = sequence_tokens * rows_per_batch

        def conversations() -> Batches:
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
            return conversations()
        if not samples:
            return documents(num_batches)
        # One more than its share: where a share falls between two batches, either may be drawn.
        number = round(num_batches * (1 - conversation_share)) + 1
        return Proportion(conversations(), documents(number), conversation_share)

    return source


def _samples(path: Path, tokenizer: Tokenizer) -> list[Sample]:
    nested = path / "data" / "train.jsonl"
    file = nested if nested.is_file() else path
    if not file.is_file():
        raise ConfigError(f"{path}: neither a JSONL file nor a folder with data/train.jsonl")
    shown = track(list(read_conversations(file)), "conversations", unit="conversations")
    samples = build_samples(shown, tokenizer, _LONGEST).samples
    if not samples:
        raise DataError(f"{file}: holds no conversations")
    return samples
