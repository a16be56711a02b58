from collections import Counter

import pytest

from plait.compress.batches import Proportion, Sequel


class Count:
    """Batches that are a name and a number."""

    def __init__(self, name):
        self.name, self.number = name, 0

    def __next__(self):
        self.number += 1
        return f"{self.name}{self.number}"

    def state(self):
        return {"number": self.number}

    def load_state(self, state):
        self.number = state["number"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_every_ten_batches_hold_the_share(share):
    mixed = Proportion(Count("a"), Count("b"), share)
    for _ in range(5):
        drawn = Counter(next(mixed)[0] for _ in range(10))
        assert drawn["a"] == round(10 * share)


def make():
    inner = Proportion(Count("a"), Count("b"), 0.7)
    return Sequel([inner, Count("c"), Count("d")], [5, 0, 4])


def test_one_source_after_another():
    batches = make()
    drawn = [next(batches) for _ in range(9)]
    assert drawn == ["b1", "a1", "a2", "b2", "a3", "d1", "d2", "d3", "d4"]
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize("place", range(10))
def test_resumed_anywhere_the_same_follows(place):
    batches, resumed = make(), make()
    for _ in range(place):
        next(batches)
    resumed.load_state(batches.state())
    assert [next(batches) for _ in range(9 - place)] == [next(resumed) for _ in range(9 - place)]
