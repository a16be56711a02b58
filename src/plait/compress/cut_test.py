import pytest

from plait.compress.cut import Cut, Shape
from plait.core.errors import ConfigError
from plait.model.spec import ModelSpec

PARENT = ModelSpec.preset("test")  # M-M*-M, 6 heads of 10 in 2 groups
CUT = Cut(
    layers=(0, 1, 3, 5),
    embedding=tuple(range(0, 48, 2)),
    feed_forward={1: (0, 7, 79)},
    mamba_heads={0: (0, 2, 3, 4), 5: (1, 2, 4, 5)},
    mamba_channels={0: (0, 1, 9), 5: (2, 3, 4)},
)


def test_a_cut_gives_its_childs_spec():
    expected = ModelSpec.preset(
        "test",
        pattern="M-*M",
        hidden_size=24,
        intermediate_size=3,
        mamba_num_heads=4,
        mamba_head_dim=3,
    )
    assert CUT.spec(PARENT) == expected
    assert CUT.shape(PARENT).spec(PARENT) == expected
    assert CUT.shape(PARENT).layers == (0, 1, 3, 5)


def test_cutting_nothing_leaves_the_spec():
    assert Cut.nothing(PARENT).spec(PARENT) == PARENT
    assert Cut.nothing(PARENT).shape(PARENT) == Shape.of(PARENT)


def test_widths_that_no_kept_layer_has_stay():
    only_attention = Cut(
        layers=(3,), embedding=(0, 1), feed_forward={}, mamba_heads={}, mamba_channels={}
    )
    spec = only_attention.spec(PARENT)
    assert (spec.pattern, spec.hidden_size) == ("*", 2)
    assert (spec.intermediate_size, spec.mamba_num_heads, spec.mamba_head_dim) == (80, 6, 10)


def test_round_trip(tmp_path):
    CUT.write(tmp_path / "cut.json")
    assert Cut.read(tmp_path / "cut.json") == CUT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ()}, "layers keeps nothing; keep at least one of 6"),
        ({"layers": (0, 1, 3, 6)}, "layers keeps 0 to 6, the parent has 0 to 5"),
        ({"layers": (0, 3, 1, 5)}, "layers must be ascending"),
        ({"layers": (0, 1, 3, 4, 5)}, r"feed_forward is given for layers \[1\], .* are \[1, 4\]"),
        ({"embedding": (0, 0, 1)}, "embedding must be ascending indices without repetition"),
        ({"embedding": (-1, 1)}, "embedding keeps -1 to 1, the parent has 0 to 47"),
        ({"feed_forward": {1: (80,)}}, "feed_forward of layer 1 keeps 80 to 80"),
        ({"mamba_heads": {0: (0, 1, 2, 3), 5: (0, 3)}}, r"different numbers .* \{0: 4, 5: 2\}"),
        (
            {"mamba_heads": {0: (0, 1, 2, 3), 5: (0, 1, 3, 4)}},
            r"mamba_heads of layer 0 keeps \[3, 1\] heads in groups 0 to 1; every group must",
        ),
        ({"mamba_heads": {0: (0, 3)}}, r"mamba_heads is given for layers \[0\], .* \[0, 5\]"),
    ],
)
def test_a_cut_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        CUT.model_copy(update=change).spec(PARENT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 49}, "hidden_size = 49, the parent has 48"),
        ({"mamba_head_dim": 11}, "mamba_head_dim = 11, the parent has 10"),
        ({"mamba_num_heads": 3}, "mamba_num_heads = 3 is not a multiple of the parent's 2 groups"),
        ({"layers": (1, 1)}, "layers must be ascending"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Shape.of(PARENT).model_copy(update=change).spec(PARENT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "not a cut"),
        ('{"layers": [0, "x"]}', r"not a cut: layers.1"),
    ],
)
def test_a_file_that_is_no_cut_is_refused(tmp_path, content, message):
    file = tmp_path / "cut.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=rf"cut.json: {message}"):
        Cut.read(file)
