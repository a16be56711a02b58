"""Rows of tokens that importance is measured on.

They come from a blend (its shards) or from curated documents (tokenised here), the same number of
each category as far as it goes. A row is a stretch of documents one after another, as pretraining
packs them, each ending in `</s>`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from plait.core.errors import ConfigError, DataError
from plait.core.seed import mix_seed
from plait.data.blend import Blend, shard_prefix
from plait.data.documents import document_files, read_documents
from plait.data.indexed import TokenShard
from plait.data.tokenizer import Tokenizer

SPLITS = ("train", "validation")


def calibration_rows(
    source: Path,
    num_rows: int,
    row_tokens: int,
    *,
    split: str = "train",
    tokenizer_from: Path | None = None,
    seed: int = 0,
) -> Int[Tensor, "B T"]:
    """Return `num_rows` rows of `row_tokens` tokens of a blend or of curated documents.

    Documents need the tokenizer of the directory `tokenizer_from` and are taken in their order;
    those of a blend in an order that the seed gives. No document is used twice.

    Raises: ConfigError for numbers or a split that make no sense, DataError if there is too little
    text or the source is neither a blend nor documents.
    """
    if num_rows < 1 or row_tokens < 2:
        raise ConfigError(
            f"calibration asks for {num_rows} rows of {row_tokens} tokens; at least 1 row of 2"
        )
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; allowed: {', '.join(SPLITS)}")
    if (source / "blend.json").exists():
        tapes = _blend_tapes(source, split, seed)
    elif tokenizer_from is not None:
        tokenizer = Tokenizer.from_directory(tokenizer_from)
        files = document_files(source, split)
        tapes = [_tokenised(file, tokenizer) for file in files.values()]
    else:
        raise ConfigError(f"{source}: to tokenise documents, name the tokenizer's directory")
    rows = [row for row, _ in zip(_in_turn(tapes, row_tokens), range(num_rows), strict=False)]
    if len(rows) < num_rows:
        raise DataError(
            f"{source}: the {split} split gives {len(rows)} calibration rows of {row_tokens} "
            f"tokens, {num_rows} are asked for; ask for fewer or shorter rows or add documents"
        )
    return torch.tensor(rows)


def _blend_tapes(source: Path, split: str, seed: int) -> list[Iterator[Sequence[int]]]:
    categories = sorted(getattr(Blend.read(source), split))
    return [_shuffled(shard_prefix(source, split, name), seed) for name in categories]


def _shuffled(prefix: Path, seed: int) -> Iterator[Sequence[int]]:
    shard = TokenShard(prefix)
    generator = torch.Generator().manual_seed(mix_seed(seed, "calibration", prefix.name))
    for document in torch.randperm(len(shard), generator=generator).tolist():
        yield shard[document].tolist()


def _tokenised(file: Path, tokenizer: Tokenizer) -> Iterator[Sequence[int]]:
    for document in read_documents(file):
        [ids] = tokenizer.encode_plain_batch([document["text"]])
        yield [*ids, tokenizer.eos_id]


def _in_turn(tapes: Sequence[Iterator[Sequence[int]]], row_tokens: int) -> Iterator[list[int]]:
    """Yield rows of one category after another, until none has a whole row left."""
    going = [_cut_rows(tape, row_tokens) for tape in tapes]
    while going:
        still = []
        for rows in going:
            if (row := next(rows, None)) is not None:
                yield row
                still.append(rows)
        going = still


def _cut_rows(documents: Iterator[Sequence[int]], row_tokens: int) -> Iterator[list[int]]:
    tape: list[int] = []
    for document in documents:
        tape += document
        while len(tape) >= row_tokens:
            yield tape[:row_tokens]
            tape = tape[row_tokens:]
