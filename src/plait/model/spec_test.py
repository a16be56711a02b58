import pytest
import torch

from plait.core.errors import ConfigError
from plait.model.lm import HybridLM
from plait.model.spec import PRESETS, ModelSpec


def test_released_models_have_their_published_sizes():
    twelve, nine = ModelSpec.preset("nano-12b-v2"), ModelSpec.preset("nano-9b-v2")
    assert twelve.num_parameters == 12_310_001_152
    assert nine.num_parameters == 8_888_227_328
    kinds = [
        (s.num_layers, s.num_mamba_layers, s.num_feed_forward_layers, s.num_attention_layers)
        for s in (twelve, nine)
    ]
    assert kinds == [(62, 28, 28, 6), (56, 27, 25, 4)]
    assert nine.in_proj_dim == 22656
    assert nine.conv_dim == 12288
    # Published per-layer sizes.
    assert twelve.layer_parameters("M") == 168_504_704
    assert twelve.layer_parameters("-") == 209_720_320
    assert twelve.layer_parameters("*") == 62_919_680
    assert nine.layer_parameters("M") == 147_450_624


@pytest.mark.parametrize("name", PRESETS)
def test_counted_parameters_are_the_built_ones(name):
    spec = ModelSpec.preset(name)
    model = HybridLM(spec, device="meta")
    assert sum(p.numel() for p in model.parameters()) == spec.num_parameters


def test_counted_parameters_with_biases_and_odd_taps():
    spec = ModelSpec.preset(
        "test", use_bias=True, mlp_bias=True, use_conv_bias=False, conv_kernel=3, pattern="M-*M*"
    )
    model = HybridLM(spec, device="meta", dtype=torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == spec.num_parameters


def test_preset_fields_can_be_overridden():
    spec = ModelSpec.preset("tiny", vocab_size=300)
    assert spec.vocab_size == 300
    assert ModelSpec.preset("tiny").vocab_size == 2048


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pattern": ""}, "pattern is empty; write one letter"),
        ({"pattern": "ME*"}, "mixture-of-experts layers .E."),
        ({"pattern": "M-|M*"}, r"pipeline marks \(\|\).* 'M-M\*'"),
        ({"pattern": "M-/M*"}, r"pipeline marks \(/\)"),
        ({"pattern": "MxA"}, "unknown letters 'A x'; allowed are M"),
        ({"num_groups": 4}, "mamba_num_heads = 6 is not a multiple of num_groups = 4"),
        ({"num_key_value_heads": 3}, "num_attention_heads = 4 is not a multiple of"),
        ({"time_step_limit": (0.5, 0.1)}, "must satisfy 0 <= low < high"),
        ({"time_step_min": 0.2}, "time_step_min is 0.2 and time_step_max 0.1; .* min <= max"),
        ({"time_step_max": float("inf")}, "time_step_max inf; .* both finite"),
        ({"vocab": 5}, "preset 'test': unknown key 'vocab'; did you mean 'vocab_size'"),
        ({"hidden_size": 0}, "key 'hidden_size': Input should be greater than 0"),
    ],
)
def test_impossible_shapes_are_refused_with_the_way_out(change, message):
    with pytest.raises(ConfigError, match=message):
        ModelSpec.preset("test", **change)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="'nano-9b'; did you mean 'nano-9b-v2'"):
        ModelSpec.preset("nano-9b")


def test_direct_construction_raises_the_same_error():
    table = PRESETS["test"] | {"pattern": "E"}
    with pytest.raises(ConfigError, match="mixture-of-experts"):
        ModelSpec(**table)
