import time

import pytest

from plait.compress.memory import Workload, memory
from plait.compress.search import Grid, Ranges, candidates, edge, stand_in_depths
from plait.core.errors import ConfigError
from plait.core.sizes import GIB, parse_bytes
from plait.model.spec import ModelSpec

NINE, TWELVE = ModelSpec.preset("nano-9b-v2"), ModelSpec.preset("nano-12b-v2")
BUDGET = parse_bytes("19.66GiB")
TEST = ModelSpec.preset("test")
SMALL = Workload(context_tokens=64, prefill_chunk_tokens=16, fixed="0B")


def search(parent, budget, ranges=None, workload=None):
    ranges = ranges or Ranges()
    depths = stand_in_depths(parent, Grid.of(ranges, parent))
    return candidates(parent, depths, ranges, workload or Workload(), budget)


@pytest.fixture(scope="module")
def fitting():
    started = time.monotonic()
    found = search(TWELVE, BUDGET)
    assert time.monotonic() - started < 20
    return found


def test_the_defaults_are_the_report_s_ranges():
    grid = Grid.of(Ranges(), TWELVE)
    assert grid.num_layers == (52, 53, 54, 55, 56)
    assert grid.keep_attention == 4
    assert (grid.hidden_size[0], grid.hidden_size[-1]) == (4480, 5120)
    assert (grid.intermediate_size[0], grid.intermediate_size[-1]) == (13440, 20480)
    assert (grid.mamba_num_heads[0], grid.mamba_num_heads[-1]) == (112, 128)
    assert grid.mamba_head_dim == (80,)


def test_the_released_child_is_among_the_candidates(fitting):
    [nine] = [
        candidate
        for candidate in fitting
        if candidate.kinds == (27, 4, 25)
        and candidate.shape.hidden_size == 4480
        and candidate.shape.intermediate_size == 15680
        and candidate.shape.mamba_num_heads == 128
    ]
    assert nine.spec.num_parameters == NINE.num_parameters == 8_888_227_328
    assert nine.memory == memory(NINE, Workload())
    assert nine.spec.num_layers == 56
    assert nine in edge(fitting, TWELVE, Ranges())  # so a search with defaults ranks it


def test_all_that_is_listed_fits_and_can_be_built(fitting):
    for candidate in fitting[::97]:
        assert candidate.memory.total <= BUDGET
        assert candidate.shape.spec(TWELVE) == candidate.spec
        assert candidate.kinds[1] >= 4
    totals = [candidate.memory.total for candidate in fitting]
    assert totals == sorted(totals, reverse=True)


def test_nothing_on_the_edge_can_grow(fitting):
    on_edge = edge(fitting, TWELVE, Ranges())
    assert 0 < len(on_edge) < len(fitting)
    grid = Grid.of(Ranges(), TWELVE)
    for candidate in on_edge[::23]:
        shape = candidate.shape
        for axis in ("hidden_size", "intermediate_size", "mamba_num_heads"):
            larger = [v for v in getattr(grid, axis) if v > getattr(shape, axis)]
            if larger:
                grown = shape.model_copy(update={axis: larger[0]}).spec(TWELVE)
                assert memory(grown, Workload()).total > BUDGET


def test_alignment_for_blocks():
    found = search(TWELVE, BUDGET, Ranges(align=128, num_layers=(56, 56, 1)))
    assert {candidate.shape.hidden_size for candidate in found} == {4480}
    for candidate in found:
        spec = candidate.spec
        widths = (spec.hidden_size, spec.intermediate_size, spec.d_inner, spec.in_proj_dim)
        assert not any(width % 128 for width in widths)


def test_a_small_parent_counted_by_hand():
    ranges = Ranges(
        num_layers=(5, 6, 1),
        keep_attention=1,
        hidden_size=(40, 48, 8),
        intermediate_size=(80, 80, 1),
        mamba_num_heads=(4, 6, 2),
        mamba_head_dim=(8, 10, 2),
    )
    found = search(TEST, 10**9, ranges, SMALL)
    # Depth 6 is everything; at 5 one Mamba or one feed-forward layer is gone, attention stays.
    assert len(found) == 3 * (2 * 1 * 2 * 2)
    kinds = {candidate.kinds for candidate in found}
    assert kinds == {(3, 1, 2), (2, 1, 2), (3, 1, 1)}
    assert found[0].spec == TEST
    assert edge(found, TEST, ranges) == [found[0]]


def test_no_depth_at_all():
    with pytest.raises(ConfigError, match="no child has 2 to 3 layers"):
        search(TEST, 10**9, Ranges(num_layers=(2, 3, 1)), SMALL)


def test_a_budget_too_small_names_what_the_smallest_child_needs():
    with pytest.raises(ConfigError, match=r"no allowed child fits 10 GiB: the smallest, 23M4A25F"):
        search(TWELVE, 10 * GIB, Ranges(num_layers=(52, 52, 1)))


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (Ranges(mamba_num_heads=(100, 127, 1)), "not a multiple of the parent's 8 groups"),
        (Ranges(hidden_size=(4480, 6144, 128)), "the parent has 5120"),
        (Ranges(keep_attention=9), "the parent has 6 attention"),
        (Ranges(align=4096), "multiples of align"),
    ],
)
def test_ranges_that_make_no_child(ranges, message):
    with pytest.raises(ConfigError, match=message):
        search(TWELVE, BUDGET, ranges)


def test_a_range_upside_down():
    with pytest.raises(ConfigError, match="least, greatest, step"):
        Ranges.parse({"hidden_size": [5120, 4480, 128]}, "here")
