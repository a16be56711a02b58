"""Which category each training row comes from: exact shares, evenly interleaved, without tables.

A run of `total_rows` rows is cut into phases, each with its own weights. Within a phase of m rows a
category gets n_c rows, rounded by largest remainder so that they add up to m and no share is off
by a whole row. Its i-th row belongs at place (2 i + 1) / (2 n_c) of the phase; sorting all places
gives the order. Row k is found by integer arithmetic alone, so any row of a run of any length
costs the same.
"""

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from pydantic import field_validator

from plait.core.config import Settings
from plait.core.errors import ConfigError


class Phase(Settings):
    """Weights of the categories up to a share of training."""

    until: float
    """Share of all tokens at which the phase ends, in (0, 1]."""
    weights: dict[str, float]
    """Relative weight of each category; one that is left out is not drawn."""

    @field_validator("weights")
    @classmethod
    def _positive(cls, weights: dict[str, float]) -> dict[str, float]:
        wrong = [name for name, weight in weights.items() if not 0 < weight < float("inf")]
        if wrong or not weights:
            raise ValueError(f"weights must be positive; wrong: {', '.join(wrong) or 'no weight'}")
        return weights

    def without(self, names: Collection[str]) -> "Phase":
        """Return the phase without some categories.

        Raises: ConfigError if none is left.
        """
        weights = {name: weight for name, weight in self.weights.items() if name not in names}
        if not weights:
            raise ConfigError(
                f"the phase until {self.until:g} draws only from missing categories: "
                + ", ".join(self.weights)
            )
        return Phase(until=self.until, weights=weights)


class Draw(NamedTuple):
    """A row's source: the `rank`-th row that is drawn from `category`, counted from 0."""

    category: str
    rank: int


class Mixture:
    """The order of categories in a run of `total_rows` rows."""

    def __init__(self, phases: Sequence[Phase], total_rows: int) -> None:
        self.total_rows = total_rows
        self.categories = sorted({name for phase in phases for name in phase.weights})
        self.ends = [round(Fraction(phase.until) * total_rows) for phase in phases[:-1]]
        self.ends.append(total_rows)
        starts = [0, *self.ends[:-1]]
        self.counts = [
            apportion([phase.weights.get(name, 0.0) for name in self.categories], end - start)
            for phase, start, end in zip(phases, starts, self.ends, strict=True)
        ]

    def draw(self, row: int) -> Draw:
        """Return the source of a row.

        Raises: IndexError outside the run.
        """
        if not 0 <= row < self.total_rows:
            raise IndexError(f"row {row} of a run of {self.total_rows}")
        phase = next(i for i, end in enumerate(self.ends) if row < end)
        start = self.ends[phase - 1] if phase else 0
        index, rank = interleave(self.counts[phase], row - start)
        earlier = sum(counts[index] for counts in self.counts[:phase])
        return Draw(self.categories[index], earlier + rank)

    def rows_of(self) -> Mapping[str, int]:
        """Return how many rows each category gives to the whole run."""
        totals = (sum(column) for column in zip(*self.counts, strict=True))
        return dict(zip(self.categories, totals, strict=True))


def apportion(weights: Sequence[float], total: int) -> list[int]:
    """Split `total` into whole parts in the ratio of the weights, by largest remainder.

    Each part differs from its exact share by less than 1; equal remainders favour the earlier part.
    """
    scale = sum(map(Fraction, weights))
    shares = [Fraction(weight) * total / scale for weight in weights]
    parts = [int(share) for share in shares]
    by_remainder = sorted(range(len(parts)), key=lambda i: parts[i] - shares[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def interleave(counts: Sequence[int], k: int) -> tuple[int, int]:
    """Return which part has the k-th place, and which of its own places that is.

    Part c with count n has its places at (2 i + 1) / (2 n), i = 0..n-1; equal places favour the
    earlier part. `k` is in [0, sum(counts)).
    """
    total = sum(counts)
    # A part is never more than half a place off its share, so the answer is near step k.
    low, high = max(0, k - len(counts)), min(total, k + len(counts))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high) if sum(_places_before(counts, total, middle)) <= k else (low, middle)
        )
    first, last = _places_before(counts, total, low), _places_before(counts, total, high)
    places = sorted(
        (Fraction(2 * i + 1, 2 * counts[c]), c, i)
        for c in range(len(counts))
        for i in range(first[c], last[c])
    )
    _, part, rank = places[k - sum(first)]
    return part, rank


def _places_before(counts: Sequence[int], total: int, step: int) -> list[int]:
    """Count for each part its places strictly below step / total."""
    return [(2 * count * step + total - 1) // (2 * total) for count in counts]
