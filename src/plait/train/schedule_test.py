import pytest

from plait.core.errors import ConfigError
from plait.train.schedule import Schedule

WSD = Schedule(
    num_steps=10, learning_rate=1.0, min_learning_rate=0.2, warmup_steps=3, decay_steps=4
)


def test_rates_are_those_computed_by_hand():
    # Warm-up rises in quarters, four steps at the peak, then four falls of (1 - 0.2) / 4.
    want = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    assert [WSD.rate(step) for step in range(10)] == pytest.approx(want)


def test_cosine_decay_passes_the_middle_at_half():
    cosine = WSD.model_copy(update={"decay_shape": "cosine"})
    assert [cosine.rate(step) for step in (5, 7, 9)] == pytest.approx([1.0, 0.6, 0.2])
    # A cosine starts flatter than a line.
    assert cosine.rate(6) > WSD.rate(6)


def test_without_decay_the_rate_is_constant():
    constant = Schedule(num_steps=5, learning_rate=4.5e-6)
    assert {constant.rate(step) for step in range(5)} == {4.5e-6}


def test_the_full_recipe_in_steps():
    # 20T tokens in batches of 736 x 8192; reference values: arXiv 2508.14444 section 2.5.
    per_step = 736 * 8192
    run = Schedule(
        num_steps=round(20e12 / per_step),
        learning_rate=4.5e-4,
        min_learning_rate=4.5e-6,
        warmup_steps=round(8e9 / per_step),
        decay_steps=round(3.6e12 / per_step),
    )
    assert (run.num_steps, run.warmup_steps, run.decay_steps) == (3_317_128, 1327, 597_083)
    assert run.rate(1327) == run.rate(run.num_steps - 597_084) == 4.5e-4
    assert run.rate(run.num_steps - 1) == pytest.approx(4.5e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": 7}, r"warm-up \(7 steps\) and decay \(4 steps\) are longer .*10 steps"),
        ({"min_learning_rate": 2.0}, "min_learning_rate 2.0 is above learning_rate 1.0"),
        ({"decay_shape": "sqrt"}, "decay_shape"),
    ],
)
def test_impossible_schedules_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Schedule.parse(WSD.model_dump() | changes, "here")
