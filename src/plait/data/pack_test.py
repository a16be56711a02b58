from itertools import chain, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data.pack import OPEN_BINS, Sample, first_fit, pack

PAIRS = st.tuples(st.integers(0, 99), st.sampled_from([0.0, 1.0, 0.5]))
SAMPLES = st.lists(st.lists(PAIRS, min_size=1, max_size=17), max_size=80).map(
    lambda samples: [Sample(*map(list, zip(*pairs, strict=True))) for pairs in samples]
)


def unpack(batch):
    """Return the samples of a batch with their shifted targets and weights, one by one."""
    bounds = batch.cu_seqlens.tolist()
    rows = [row[0].tolist() for row in batch[:3]]
    return [tuple(row[begin:end] for row in rows) for begin, end in pairwise(bounds)]


@settings(max_examples=50, deadline=None)
@given(SAMPLES, st.integers(17, 60))
def test_every_sample_comes_out_once_and_whole(samples, capacity):
    groups = first_fit((len(sample.ids) for sample in samples), capacity)
    batches = [pack([samples[index] for index in group]) for group in groups]
    found = []
    for batch in batches:
        assert batch.tokens.shape == batch.targets.shape == batch.weights.shape
        assert batch.tokens.shape[1] == batch.cu_seqlens[-1] <= capacity
        found += unpack(batch)
    expected = [(list(ids), [*ids[1:], ids[-1]], [*weights[1:], 0.0]) for ids, weights in samples]
    assert sorted(found) == sorted(expected)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 10), max_size=200), st.integers(10, 30))
def test_groups_are_filled_first_fit(lengths, capacity):
    groups = list(first_fit(lengths, capacity))
    assert sorted(chain(*groups)) == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in group) for group in groups]
    assert all(total <= capacity for total in totals)
    if len(groups) <= OPEN_BINS:
        # Every later group starts with a sample that fitted nowhere before.
        for position, group in enumerate(groups):
            for earlier, total in zip(groups[:position], totals, strict=False):
                before = sum(lengths[i] for i in earlier if i < group[0])
                assert before + lengths[group[0]] > capacity
                assert total <= capacity


def test_order_is_nearly_the_input_order():
    groups = list(first_fit([7] * 1_000, 10))
    assert groups == [[i] for i in range(1_000)]


def test_dtypes():
    batch = pack([Sample([1, 2, 3], [1, 0, 1])])
    assert [str(t.dtype).removeprefix("torch.") for t in batch] == [
        "int64",
        "int64",
        "float32",
        "int32",
    ]


def test_too_long_empty_and_uneven_samples_are_refused():
    with pytest.raises(ValueError, match="sample 1 has 4 tokens, more than the row's 3"):
        list(first_fit([1, 4], 3))
    with pytest.raises(ValueError, match="0 ids"):
        pack([Sample([], [])])
    with pytest.raises(ValueError, match="2 ids and 1 weights"):
        pack([Sample([1, 2], [1])])
