"""Token shards in Megatron's format: `<prefix>.bin` holds tokens, `<prefix>.idx` their bounds.

The index, little-endian and without padding:

    9 bytes   "MMIDIDX\\0\\0"
    uint64    version, 1
    uint8     token type: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16
    uint64    number of sequences S
    uint64    number of document boundaries, documents + 1
    int32[S]  tokens in each sequence
    int64[S]  byte offset of each sequence in the .bin
    int64[]   for each document the first of its sequences, then S

We write one sequence for each document; documents of several sequences are read as well. A shard
whose index exists is complete, since the index is written last.
"""

import os
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from plait.core.artifact import write_atomic
from plait.core.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}

# Megatron's own limit: from here on it stores int32.
UINT16_VOCABULARY = 65_500


def bin_path(prefix: Path) -> Path:
    """Return the file of tokens of a shard."""
    return prefix.with_name(f"{prefix.name}.bin")


def idx_path(prefix: Path) -> Path:
    """Return the index file of a shard."""
    return prefix.with_name(f"{prefix.name}.idx")


class TokenShard:
    """A shard on disk, memory-mapped: nothing is read until it is looked at.

    `tokens` is all of it in one array; document d is tokens[starts[d] : starts[d + 1]].
    Raises: DataError naming the file if it is missing, truncated or not in this format.
    """

    def __init__(self, prefix: Path) -> None:
        index = idx_path(prefix)
        try:
            content = np.memmap(index, np.uint8, mode="r")
        except (FileNotFoundError, ValueError):  # numpy cannot map an empty file
            raise DataError(f"{index}: missing or empty; write the shard again") from None
        lengths, pointers, documents, dtype = _parse_index(index, content)
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), ends])
        if not np.array_equal(pointers, starts[:-1] * dtype.itemsize):
            raise DataError(f"{index}: its sequences do not follow one another in the .bin")
        self.starts = starts[documents]
        self.tokens = _map_tokens(bin_path(prefix), dtype, int(starts[-1]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, document: int) -> np.ndarray:
        """Return the tokens of a document without copying them."""
        return self.tokens[self.starts[document] : self.starts[document + 1]]


def _parse_index(
    file: Path, content: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.dtype]:
    if content.size < _HEADER.size:
        raise DataError(f"{file}: {content.size} bytes, too short for an index; write it again")
    magic, version, code, num_sequences, num_boundaries = _HEADER.unpack(
        content[: _HEADER.size].tobytes()
    )
    if magic != MAGIC or version != 1 or code not in _TYPES:
        raise DataError(
            f"{file}: not a Megatron index (magic {magic!r}, version {version}, token type {code})"
        )
    expected = _HEADER.size + 12 * num_sequences + 8 * num_boundaries
    if content.size != expected:
        raise DataError(
            f"{file}: {content.size} bytes, but {num_sequences} sequences and {num_boundaries} "
            f"boundaries take {expected}: truncated or damaged, write it again"
        )
    lengths, pointers, documents = (
        np.frombuffer(content.data, dtype, count, offset)
        for dtype, count, offset in (
            ("<i4", num_sequences, _HEADER.size),
            ("<i8", num_sequences, _HEADER.size + 4 * num_sequences),
            ("<i8", num_boundaries, _HEADER.size + 12 * num_sequences),
        )
    )
    in_order = num_boundaries > 0 and documents[0] == 0 and documents[-1] == num_sequences
    if not in_order or np.any(np.diff(documents) < 0) or np.any(lengths < 0):
        raise DataError(f"{file}: its document boundaries or lengths make no sense: damaged")
    return lengths, pointers, documents, np.dtype(_TYPES[code])


def _map_tokens(file: Path, dtype: np.dtype, num_tokens: int) -> np.ndarray:
    found = file.stat().st_size if file.is_file() else -1
    if found != num_tokens * dtype.itemsize:
        raise DataError(
            f"{file}: {'missing' if found < 0 else f'{found} bytes'}, but its index says "
            f"{num_tokens} tokens of {dtype.itemsize} bytes; write the shard again"
        )
    if num_tokens == 0:
        return np.empty(0, dtype)
    return np.asarray(np.memmap(file, dtype, mode="r"))


class ShardWriter:
    """Writes a shard document by document; use as a context manager.

    Tokens are uint16 for vocabularies below 65,500 and int32 from there on. The shard appears
    when the block ends without an error.
    """

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        self._prefix = prefix
        self._code = 8 if vocab_size < UINT16_VOCABULARY else 4
        self._dtype = np.dtype(_TYPES[self._code])
        self._vocab_size = vocab_size
        self._lengths = array("i")

    def __enter__(self) -> "ShardWriter":
        file = bin_path(self._prefix)
        file.parent.mkdir(parents=True, exist_ok=True)
        idx_path(self._prefix).unlink(missing_ok=True)
        self._partial = file.with_name(f".{file.name}.partial")
        self._file = self._partial.open("wb")
        return self

    def add(self, ids: Sequence[int]) -> None:
        """Append a document.

        Raises: ValueError for an id outside the vocabulary.
        """
        tokens = np.asarray(ids, dtype=np.int64)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self._vocab_size:
            raise ValueError(f"a token id lies outside the vocabulary of {self._vocab_size}")
        self._file.write(tokens.astype(self._dtype).tobytes())
        self._lengths.append(tokens.size)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if kind is not None:
            self._partial.unlink()
            return
        self._partial.replace(bin_path(self._prefix))
        lengths = np.asarray(self._lengths, dtype="<i4")
        ends = np.cumsum(lengths, dtype="<i8") * self._dtype.itemsize
        pointers = np.concatenate([np.zeros(1, "<i8"), ends])[: lengths.size]
        boundaries = np.arange(lengths.size + 1, dtype="<i8")
        header = _HEADER.pack(MAGIC, 1, self._code, lengths.size, boundaries.size)
        write_atomic(
            idx_path(self._prefix),
            header + lengths.tobytes() + pointers.tobytes() + boundaries.tobytes(),
        )
