"""Train the byte-level BPE tokenizer of a recipe on its documents.

Ids are laid out as in the released tokenizer: `<unk>`, `<s>`, `</s>`, the reserved `<SPECIAL_3>`
and following, then the 256 bytes, then merges in the order they were learnt. Text is split before
merging by a Tekken-style pattern under which every digit is its own token.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tokenizers
from pydantic import Field, field_validator
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from plait.core.artifact import write_json
from plait.core.config import Settings, nearest
from plait.core.errors import ConfigError, DataError
from plait.core.progress import track
from plait.data.chat import nano_template
from plait.data.documents import document_files, read_documents
from plait.data.fertility import FERTILITY_FILE, measure
from plait.data.tokenizer import END_OF_TURN, Tokenizer

logger = logging.getLogger(__name__)

# Mistral's Tekken pattern: words split at a change of case, single digits, runs of signs, white
# space.
SPLIT_PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

# What the chat template prints between contents, to be learnt as few tokens.
_CHAT_TEXT = (
    "System\n\nUser\n \nAssistant\n<think>\n \n</think>\n\n",
    "User\n \nAssistant\n<think></think> \n",
    "<AVAILABLE_TOOLS>[{ }]</AVAILABLE_TOOLS>\n\n<TOOLCALL>[{ }]</TOOLCALL>\n"
    "User\n<TOOL_RESPONSE>[ ]</TOOL_RESPONSE>\n",
)


class TokenizerSettings(Settings):
    """Settings of the stage `tokenizer`."""

    vocab_size: int = 131_072
    """Ids in all: special tokens, 256 bytes, merges. Source: model cards."""
    num_special_tokens: int = 1_000
    """Reserved ids at the front, `<unk>`, `<s>`, `</s>` included; at least 13. Our choice."""
    characters_per_category: int = 100_000_000
    """Text read from each category, spread evenly over its documents. Our choice."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Of that, how much of a category that is not to have as much as the others: 2 is twice as
    much, 0.1 a tenth, 0 nothing."""
    chat_share: float = 0.01
    """Share of template text in the training text, so that its words become short. Our choice."""

    @field_validator("weights")
    @classmethod
    def _are_amounts(cls, weights: dict[str, float]) -> dict[str, float]:
        wrong = [name for name, weight in weights.items() if not 0 <= weight < float("inf")]
        if wrong:
            raise ValueError(f"weights must not be negative; wrong: {', '.join(wrong)}")
        return weights


def run(settings: TokenizerSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Train on `inputs["documents"]`/documents/train; write a tokenizer directory, fertility too.

    Raises: ConfigError if the vocabulary is too small or a weight is of no category; DataError if
    there is no text.
    """
    files = document_files([inputs["documents"]], "train")
    sizes = {name: _count_characters(found) for name, found in files.items()}
    if not sum(sizes.values()):
        raise DataError(f"{inputs['documents']}: the training documents hold no text")
    budgets = _budgets(settings, list(files))
    sampled = {name: min(sizes[name], budgets[name]) for name in files}
    texts = itertools.chain(
        _chat_texts(int(sum(sampled.values()) * settings.chat_share)),
        *(sample_text(files[name], sizes[name], budgets[name]) for name in files),
    )
    tokenizer = train_tokenizer(
        track(texts, "tokenizer", unit="documents"),
        vocab_size=settings.vocab_size,
        num_special_tokens=settings.num_special_tokens,
    )
    tokenizer.save(out)
    # Held-out documents first: on text that it was trained on, a tokenizer does better.
    held_out = sorted((inputs["documents"] / "documents" / "validation").glob("*.jsonl"))
    fertility = measure(tokenizer, [*held_out, *itertools.chain(*files.values())])
    write_json(out / FERTILITY_FILE, fertility)
    return {
        "vocab_size": float(tokenizer.vocab_size),
        "characters": float(sum(sampled.values())),
        **{f"characters.{name}": float(size) for name, size in sampled.items()},
        **{f"bytes_per_token.{name}": row["bytes_per_token"] for name, row in fertility.items()},
    }


def _budgets(settings: TokenizerSettings, categories: list[str]) -> dict[str, int]:
    for name in settings.weights:
        if name not in categories:
            raise ConfigError(f"weights: no category {name!r}; {nearest(name, categories)}")
    most = settings.characters_per_category
    return {name: int(most * settings.weights.get(name, 1.0)) for name in categories}


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, num_special_tokens: int = 16
) -> Tokenizer:
    """Train a tokenizer with the special tokens and chat template of Nemotron Nano 2.

    The vocabulary comes out smaller than asked, with a warning, when the texts hold too few pairs.
    Deterministic: the same texts give the same tokenizer.
    Raises: ConfigError if `vocab_size` leaves no room for special tokens and bytes.
    """
    if num_special_tokens < 13:
        raise ConfigError(
            f"num_special_tokens = {num_special_tokens} is too small: the chat template needs "
            f"{END_OF_TURN}, so at least 13"
        )
    if vocab_size < num_special_tokens + 256:
        raise ConfigError(
            f"vocab_size = {vocab_size} is too small: {num_special_tokens} special tokens "
            f"+ 256 bytes = {num_special_tokens + 256} at least"
        )
    special = ["<unk>", "<s>", "</s>"]
    special += [f"<SPECIAL_{id_}>" for id_ in range(3, num_special_tokens)]
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(text, normalized=False, special=True) for text in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() < vocab_size:
        logger.warning(
            "the texts gave only %d of %d vocabulary entries", backend.get_vocab_size(), vocab_size
        )
    named = {
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": END_OF_TURN,
    }
    return Tokenizer(backend, named, nano_template())


def sample_text(files: Sequence[Path], num_characters: int, budget: int) -> Iterator[str]:
    """Yield documents evenly spread over files until `budget` characters are spent.

    `num_characters` is the length of all documents together. A document that begins a new unit of
    budget is taken; the last one is cut.
    """
    share = min(1.0, budget / max(num_characters, 1))
    seen = spent = 0
    for document in read_documents(files):
        text = document["text"]
        seen += len(text)
        if spent < int(seen * share):
            text = text[: budget - spent]
            spent += len(text)
            yield text


def _count_characters(files: Sequence[Path]) -> int:
    return sum(len(document["text"]) for document in read_documents(files))


def _chat_texts(num_characters: int) -> Iterator[str]:
    spent = 0
    for text in itertools.cycle(_CHAT_TEXT):
        if spent >= num_characters:
            return
        spent += len(text)
        yield text
