"""MinHash signatures of texts, on arrays.

A text is the set of its n-grams of characters. Each of bands x rows hash functions gives the least
value it takes on the set; two texts agree in one of these with probability equal to their Jaccard
similarity. The rows of a band are hashed into one number: texts that share a band's number are
candidates for being near duplicates.

N-grams are hashed by a polynomial over random 64-bit codes of characters (arithmetic modulo 2^64),
all at once from prefix sums, then mixed; the hash functions multiply by odd numbers and add.
"""

import functools
from typing import NamedTuple

import numpy as np

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
# datatrove reads 61 bits.
_SHIFT = np.uint64(3)


class Family(NamedTuple):
    """The hash functions of `bands * rows` values; the same seed gives the same on any machine."""

    ngram: int
    bands: int
    rows: int
    seed: int


def ngram_hashes(text: str, n: int) -> np.ndarray:
    """Return a 64-bit hash of every n-gram of characters in a text; of all of a shorter text."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    return window_hashes(codes, min(n, codes.size))


def window_hashes(codes: np.ndarray, n: int) -> np.ndarray:
    """Return a 64-bit hash of every `n` numbers in a row of a uint64 array; of fewer, none."""
    if not 0 < n <= codes.size:
        return np.empty(0, np.uint64)
    terms = mix(codes) * _powers(_BASE, _rounded(codes.size))[: codes.size]
    prefix = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    windows = prefix[n:] - prefix[:-n]
    return mix(windows * _powers(_INVERSE, _rounded(windows.size))[: windows.size])


def signature(text: str, family: Family) -> np.ndarray:
    """Return the band numbers of a text (uint64, `bands` of them, below 2^61); none if empty."""
    hashes = ngram_hashes(text, family.ngram)
    if not hashes.size:
        return np.empty(0, np.uint64)
    factors, offsets = _functions(family)
    least = np.empty(factors.size, np.uint64)
    buffer = np.empty_like(hashes)
    for k in range(factors.size):
        np.multiply(hashes, factors[k], out=buffer)
        np.add(buffer, offsets[k], out=buffer)
        least[k] = buffer.min()
    numbers = np.zeros(family.bands, np.uint64)
    for row in least.reshape(family.bands, family.rows).T:
        numbers = mix(numbers ^ row)
    return numbers >> _SHIFT


def mix(values: np.ndarray) -> np.ndarray:
    """Scatter 64-bit numbers one to one (the finaliser of splitmix64)."""
    values = values + np.uint64(_BASE)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.cache
def _functions(family: Family) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.Generator(np.random.PCG64(family.seed))
    draw = generator.integers(0, 2**64, size=(2, family.bands * family.rows), dtype=np.uint64)
    return draw[0] | np.uint64(1), draw[1]


def _rounded(size: int) -> int:
    """Return a length of table that serves many texts."""
    return 1 << max(16, (size - 1).bit_length())


@functools.lru_cache(maxsize=8)
def _powers(base: int, size: int) -> np.ndarray:
    table = np.full(size, base, np.uint64)
    table[0] = 1
    return np.cumprod(table, dtype=np.uint64)
