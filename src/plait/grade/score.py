"""What every grader returns."""

from typing import NamedTuple


class Score(NamedTuple):
    """A grade in [0, 1] and, in a few words, why."""

    value: float
    reason: str
