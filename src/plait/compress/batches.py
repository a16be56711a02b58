"""Batches put together from others: two sources in a fixed proportion, and one after another.

Which source gives batch k depends on k alone, so a place is that number and the places of the
sources, and what is drawn after resuming is what would have been drawn.
"""

from collections.abc import Sequence
from typing import Any

from plait.train.loop import Batches


class Proportion:
    """Draw from the first source a share of all batches, evenly spread, else from the second."""

    def __init__(self, first: Batches, second: Batches, share: float) -> None:
        self._sources, self._share, self._number = (first, second), share, 0

    def __next__(self) -> Any:
        # The epsilon keeps 0.7 * 10, a hair under 7 in binary, from being 6.
        before, after = (int(n * self._share + 1e-9) for n in (self._number, self._number + 1))
        self._number += 1
        return next(self._sources[0 if after > before else 1])

    def state(self) -> dict[str, Any]:
        """Return the place as JSON values."""
        return {"number": self._number, "sources": [source.state() for source in self._sources]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go to a place that `state` gave."""
        self._number = state["number"]
        for source, place in zip(self._sources, state["sources"], strict=True):
            source.load_state(place)


class Sequel:
    """Draw `num_batches[i]` batches from source i, then from the next; ends after the last."""

    def __init__(self, sources: Sequence[Batches], num_batches: Sequence[int]) -> None:
        self._sources, self._num_batches = sources, num_batches
        self._part = self._number = 0

    def __next__(self) -> Any:
        while self._part < len(self._sources):
            if self._number < self._num_batches[self._part]:
                self._number += 1
                return next(self._sources[self._part])
            self._part, self._number = self._part + 1, 0
        raise StopIteration

    def state(self) -> dict[str, Any]:
        """Return the place as JSON values."""
        part = min(self._part, len(self._sources) - 1)
        return {
            "part": self._part,
            "number": self._number,
            "source": self._sources[part].state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go to a place that `state` gave."""
        self._part, self._number = state["part"], state["number"]
        self._sources[min(self._part, len(self._sources) - 1)].load_state(state["source"])
