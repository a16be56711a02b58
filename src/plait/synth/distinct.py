"""Near-duplicates among short texts: MinHash of five-word shingles, in memory."""

import importlib
from collections.abc import Sequence
from typing import Any

from plait.core.errors import ConfigError

NUM_BANDS, HASHES_PER_BAND = 14, 8
SHINGLE_WORDS = 5
THRESHOLD = 0.7
"""Estimated Jaccard similarity from which the later of two texts is a duplicate."""


class Distinct:
    """Remembers texts and says of each new one whether it is like one of them."""

    def __init__(self) -> None:
        try:
            rensa: Any = importlib.import_module("rensa")
        except ImportError:
            raise ConfigError(
                "comparing questions needs rensa: pip install 'plait[synth]'"
            ) from None
        self._minhash = rensa.RMinHash
        num_hashes = NUM_BANDS * HASHES_PER_BAND
        self._num_hashes = num_hashes
        self._index = rensa.RMinHashLSH(THRESHOLD, num_hashes, NUM_BANDS)
        self._signatures: list = []

    def add(self, text: str) -> bool:
        """Remember a text and return True; False if it is a near-duplicate."""
        signature = self._minhash(self._num_hashes, 1)
        signature.update(shingles(text))
        if any(
            signature.jaccard(self._signatures[i]) >= THRESHOLD
            for i in self._index.query(signature)
        ):
            return False
        self._index.insert(len(self._signatures), signature)
        self._signatures.append(signature)
        return True


def shingles(text: str) -> Sequence[str]:
    """Return the overlapping five-word pieces of a text in lower case; one for a shorter text."""
    words = text.lower().split()
    starts = range(max(len(words) - SHINGLE_WORDS, 0) + 1)
    return [" ".join(words[start : start + SHINGLE_WORDS]) for start in starts]
