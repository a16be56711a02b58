import pytest

from plait.core.errors import CapacityError
from plait.core.sizes import GIB
from plait.engine.memory_plan import plan_memory
from plait.model.count import serving_bytes
from plait.model.spec import ModelSpec
from plait.model.state import BLOCK_TOKENS

NANO = ModelSpec.preset("nano-9b-v2")
WEIGHTS = 2 * NANO.num_parameters


def plan(gib: int | float, **wishes):
    return plan_memory(NANO, int(gib * GIB), weights_bytes=WEIGHTS, **wishes)


def test_nano_9b_holds_131072_tokens_in_22_gib():
    got = plan(22, max_context=131072)
    assert got.max_context == 131072
    assert got.num_blocks * BLOCK_TOKENS >= 131072
    assert got.used_bytes <= 22 * GIB
    assert got.num_rows > 1
    assert got.num_stored >= 2
    # Report and model agree: 16 KiB of keys and values a token, 143.5 MB of state a sequence.
    assert got.block_bytes == BLOCK_TOKENS * 16 * 1024
    assert got.state_bytes == pytest.approx(143.5e6, rel=2e-3)
    assert "131,072 tokens each at most" in got.describe()


@pytest.mark.parametrize(
    ("gib", "wishes", "message"),
    [
        (18, {"max_context": 131072}, r"131,072 tokens: weights 16\.56 GiB \+ .*request 2 GiB"),
        (22, {"max_num_seqs": 64}, r"states 64 x 13\d\.\d+ MiB"),
        (12, {}, "give more memory"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_arithmetic(gib, wishes, message):
    with pytest.raises(CapacityError, match=message):
        plan(gib, **wishes)


def test_without_wishes_the_context_is_what_fits():
    got = plan(18.2)
    assert 1000 < got.max_context < 131072
    assert got.max_context % BLOCK_TOKENS == 0
    assert got.used_bytes <= 18.2 * GIB
    with pytest.raises(CapacityError):
        plan(18.2, max_context=got.max_context + 4096)


@pytest.mark.parametrize("gib", [18, 20, 22, 40, 141])
@pytest.mark.parametrize("rows", [None, 1, 4])
def test_plans_never_exceed_their_memory(gib, rows):
    got = plan(gib, max_num_seqs=rows)
    assert got.used_bytes <= gib * GIB
    assert got.num_blocks * BLOCK_TOKENS >= got.max_context
    assert got.num_rows == (rows or got.num_rows)
    assert plan(gib, max_num_seqs=rows, prefix_cache=False).num_stored == 0


def test_shorter_states_leave_room_for_more():
    short = plan(22, ssm_bytes_per_value=2, max_context=131072)
    assert short.state_bytes == pytest.approx(72.8e6, rel=5e-3)
    assert short.num_rows > plan(22, max_context=131072).num_rows


def test_terms_are_those_of_the_compression_budget():
    # weights + KV + state as in the report's budget of 19.66 GiB: 18.69 GiB at 128k, batch 1.
    got = serving_bytes(NANO, 1, 131072)
    assert (got.weights + got.kv + got.states) / GIB == pytest.approx(18.69, abs=0.005)
    assert sum(got) == got.total


@pytest.mark.parametrize("pattern", ["M-", "*-", "-"])
def test_models_without_a_kind_of_layer_can_be_planned(pattern):
    spec = ModelSpec.preset("test", pattern=pattern)
    got = plan_memory(spec, GIB, weights_bytes=2 * spec.num_parameters)
    assert got.num_rows == 32
    assert got.num_blocks * BLOCK_TOKENS >= got.max_context
