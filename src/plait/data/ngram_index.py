"""Which benchmark question shares words with a text: sorted tables of hashed n-grams.

Words are compared in lower case without punctuation; where a script puts no blanks, letters are
words. Every n words in a row of a question stand in a table with the question's number. A text's
n-grams are looked up in one search; how much of a question was found is the share of its different
n-grams. A question shorter than n words is one n-gram of its own length, in a table of that length.
"""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from plait.data.minhash import window_hashes
from plait.data.words import split_words

_NO_WORD = re.compile(r"[\W_]+")


class Overlap(NamedTuple):
    """The question that a text holds most of."""

    item: int
    share: float
    """Of the question's different n-grams."""


class NgramIndex:
    """Tables by n; `totals` counts the n-grams of each question (0: too short to look for)."""

    def __init__(self, tables: dict[int, tuple[np.ndarray, np.ndarray]], num_items: int) -> None:
        self.tables = tables
        self.totals = np.zeros(num_items, np.int64)
        for _, numbers in tables.values():
            np.add.at(self.totals, numbers, 1)

    @classmethod
    def build(cls, texts: Sequence[str], n: int, min_words: int) -> "NgramIndex":
        """Index questions by their `n` words in a row."""
        rows: dict[int, list[tuple[np.ndarray, int]]] = {}
        for number, text in enumerate(texts):
            codes = word_codes(text)
            length = min(n, codes.size)
            if length >= min(min_words, n):
                hashes = np.unique(window_hashes(codes, length))
                rows.setdefault(length, []).append((hashes, number))
        tables = {}
        for length, found in rows.items():
            hashes = np.concatenate([part for part, _ in found])
            numbers = np.concatenate([np.full(part.size, number) for part, number in found])
            order = np.argsort(hashes, kind="stable")
            tables[length] = hashes[order], numbers[order].astype(np.int64)
        return cls(tables, len(texts))

    def find(self, text: str) -> Overlap | None:
        """Return the question that a text shares most of, or None if they share no n-gram."""
        codes = word_codes(text)
        counts: Counter[int] = Counter()
        for n, (hashes, numbers) in self.tables.items():
            ours = np.unique(window_hashes(codes, n))
            first, last = (np.searchsorted(hashes, ours, side) for side in ("left", "right"))
            for at in np.flatnonzero(last > first):
                counts.update(numbers[first[at] : last[at]].tolist())
        if not counts:
            return None
        item = max(counts, key=lambda number: (counts[number] / self.totals[number], -number))
        return Overlap(item, counts[item] / int(self.totals[item]))


def word_codes(text: str) -> np.ndarray:
    """Return a number for each word of a text (uint64)."""
    plain = _NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).lower())
    words = split_words(plain)
    return np.fromiter(map(_code, words), np.uint64, len(words))


@functools.lru_cache(maxsize=1 << 17)
def _code(word: str) -> int:
    import xxhash

    return xxhash.xxh3_64_intdigest(word)
