from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data.mixture import Mixture, Phase, apportion, interleave

WEIGHTS = st.lists(
    st.sampled_from([0.0, 0.1, 1.0, 7.0]) | st.floats(1e-6, 1e6), min_size=1, max_size=8
).filter(any)


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 10**15))
def test_parts_add_up_and_are_off_by_less_than_one(weights, total):
    parts = apportion(weights, total)
    scale = sum(map(Fraction, weights))
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - Fraction(weight) * total / scale) < 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any))
def test_interleaving_is_the_sorted_order_of_places(counts):
    places = sorted(
        (Fraction(2 * i + 1, 2 * count), part, i)
        for part, count in enumerate(counts)
        for i in range(count)
    )
    order = [interleave(counts, k) for k in range(len(places))]
    assert order == [(part, i) for _, part, i in places]


def test_interleaving_is_even_and_cheap_in_the_middle_of_a_huge_run():
    counts = [6 * 10**11, 3 * 10**11, 10**11]
    start = 123_456_789_012
    drawn = Counter(interleave(counts, k)[0] for k in range(start, start + 1_000))
    assert abs(drawn[0] - 600) <= 1
    assert abs(drawn[1] - 300) <= 1
    assert abs(drawn[2] - 100) <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 150), st.data())
def test_every_phase_keeps_its_shares_and_ranks_never_skip(total_rows, data):
    names = ["a", "b", "c"]
    weights = st.dictionaries(st.sampled_from(names), st.floats(0.01, 100), min_size=1, max_size=3)
    phases = [Phase(until=until, weights=data.draw(weights)) for until in (0.6, 0.9, 1.0)]
    mixture = Mixture(phases, total_rows)
    draws = [mixture.draw(row) for row in range(total_rows)]

    starts = [0, *mixture.ends[:-1]]
    for phase, start, end in zip(phases, starts, mixture.ends, strict=True):
        assert abs(end - phase.until * total_rows) <= 0.5
        drawn = Counter(draw.category for draw in draws[start:end])
        scale = sum(phase.weights.values())
        for name in names:
            share = phase.weights.get(name, 0.0) / scale
            assert abs(drawn[name] - share * (end - start)) < 1

    for name in mixture.categories:
        ranks = [draw.rank for draw in draws if draw.category == name]
        assert ranks == list(range(mixture.rows_of()[name]))


def test_rows_outside_the_run_are_refused():
    mixture = Mixture([Phase(until=1.0, weights={"a": 1})], 3)
    with pytest.raises(IndexError, match="row 3 of a run of 3"):
        mixture.draw(3)
