import numpy as np
import pytest

from plait.core.errors import ConfigError
from plait.data.curate_settings import CategorySettings
from plait.data.quality_settings import TierSettings
from plait.data.tiers import find_cuts, tier_of, weighted_cuts


def test_cuts_part_the_bytes_equally():
    generator = np.random.default_rng(0)
    values, weights = generator.normal(size=5000), generator.integers(100, 2000, size=5000)
    cuts = weighted_cuts(values, weights, 20)
    buckets = np.searchsorted(cuts, values, "right")
    shares = [weights[buckets == bucket].sum() / weights.sum() for bucket in range(20)]
    assert np.abs(np.array(shares) - 0.05).max() < 2000 / weights.sum() * 2
    # Naive: the first value, in order, at which so much of the weight is reached.
    order = sorted(range(5000), key=lambda i: values[i])
    for number, cut in enumerate(cuts, start=1):
        reached = 0
        for i in order:
            reached += weights[i]
            if reached >= number / 20 * weights.sum():
                break
        assert cut == values[i]


def test_equal_scores_share_a_bucket_and_nothing_has_no_cuts():
    assert weighted_cuts(np.array([]), np.array([]), 4) == []
    assert weighted_cuts(np.full(9, 2.0), np.ones(9), 4) == [2.0, 2.0, 2.0]


def documents(scores, size=10):
    return [{"text": "x" * size, "metadata": {"good": good, "hard": hard}} for good, hard in scores]


def test_the_best_of_several_scores_counts():
    tiers = TierSettings(by=("good", "hard"), num_buckets=4, buckets={"top": 3, "fair": 1})
    pool = documents([(i, -i) for i in range(40)])
    cuts = find_cuts(pool, tiers)
    made = [tier_of(document["metadata"], tiers, cuts) for document in pool]
    # Either score puts a quarter into its last bucket; no document is low in both.
    assert made.count("top") in range(19, 24)
    assert made.count(None) == 0
    assert made[0] == made[39] == "top"
    assert made[20] == "fair"


def test_scores_themselves_make_tiers():
    tiers = TierSettings(by=("good",), scores={"maths-4": 3.5, "maths-3": 2.5})
    assert find_cuts(documents([(1, 1)]), tiers) == {}
    assert tiers.categories == ("maths-3", "maths-4")
    made = [tier_of({"good": score}, tiers, {}) for score in (0, 2.49, 2.5, 3.49, 3.5, 5)]
    assert made == [None, None, "maths-3", "maths-3", "maths-4", "maths-4"]


CATEGORY = {"files": [{"paths": ["x"]}], "scores": [{"name": "good"}, {"name": "subject"}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tiers": {"by": ["god"], "scores": {"a": 1}}}, "no score 'god' .* mean 'good'"),
        ({"tiers": {"by": ["subject"], "scores": {"a": 1}}}, "no score 'subject' with numbers"),
        ({"tiers": {"by": ["good"]}}, "either buckets or scores"),
        ({"tiers": {"by": ["good"], "buckets": {"a": 20}}}, "bucket 20 is not in 0..19"),
        ({"tiers": {"by": ["good"], "buckets": {"a": 2, "b": 2}}}, "begin at the same place"),
        ({"tiers": {"by": ["good"], "buckets": {"A b": 2}}}, "lower-case"),
        ({"scores": [{"name": "good"}, {"name": "good"}]}, "two scores have the same name"),
        ({"scores": [{"name": "language"}]}, "no other metadata's"),
        ({"scores": [{"name": "mathss", "by": "endpoint"}]}, "no rubric .* mean 'maths'"),
    ],
)
def test_wrong_settings_say_what_is_allowed(changes, message):
    with pytest.raises(ConfigError, match=message):
        CategorySettings.parse({**CATEGORY, **changes}, "test")
