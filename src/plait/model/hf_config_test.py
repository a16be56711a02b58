import json

import pytest
from huggingface_hub.utils import HFValidationError, validate_repo_id

from plait.core.errors import ConfigError
from plait.model.hf_config import config_from_spec, is_hub_id, read_spec, spec_from_config
from plait.model.spec import PRESETS, ModelSpec

SPEC = ModelSpec.preset("test")
HUB = config_from_spec(SPEC, "bfloat16")
ALIASES = {
    "n_groups": "mamba_n_groups",
    "conv_kernel": "mamba_d_conv",
    "time_step_min": "mamba_dt_min",
    "time_step_max": "mamba_dt_max",
    "time_step_limit": "mamba_dt_limit",
    "time_step_floor": "mamba_dt_init_floor",
    "use_conv_bias": "mamba_conv_bias",
}


def renamed(names, config=HUB):
    return {names.get(key, key): value for key, value in config.items()}


def with_layer_list(names, key="layers_block_type"):
    config = {k: v for k, v in HUB.items() if k not in ("hybrid_override_pattern",)}
    return config | {key: [names[letter] for letter in SPEC.pattern]}


SPELLINGS = {
    "hub": HUB,
    "old 8B": renamed({"head_dim": "attention_head_dim"}),
    "transformers 5.0": with_layer_list({"M": "mamba", "*": "attention", "-": "mlp"}),
    "transformers 5.13": with_layer_list(
        {"M": "linear_attention", "*": "full_attention", "-": "mlp"}
    )
    | {
        "num_hidden_layers": None,
        "time_step_limit": [0.0, {"__float__": "Infinity"}],
        "moe_intermediate_size": 7688,
        "n_routed_experts": 8,
        "mtp_layers_block_type": ["full_attention", "moe"],
    },
    "layer_types": with_layer_list({"M": "mamba", "*": "attention", "-": "mlp"}, "layer_types"),
    "mamba_ aliases": renamed(ALIASES),
    "Megatron names": renamed(
        {"num_key_value_heads": "num_query_groups", "n_groups": "mamba_num_groups"}
    ),
    "state alias": renamed({"ssm_state_size": "mamba_state_dim"}),
    "several ends": HUB | {"eos_token_id": [2, 11], "use_mamba_kernels": True, "rope_theta": 1e4},
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_reads_the_same(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SPELLINGS[name]))
    assert read_spec(tmp_path) == SPEC
    assert read_spec(str(tmp_path / "config.json")) == SPEC


@pytest.mark.parametrize("name", PRESETS)
def test_written_config_reads_back(name):
    spec = ModelSpec.preset(name)
    config = json.loads(json.dumps(config_from_spec(spec, "bfloat16")))
    assert spec_from_config(config, "x") == spec
    assert config["hybrid_override_pattern"] == spec.pattern
    assert config["num_hidden_layers"] == spec.num_layers
    assert not [key for key in config if "moe" in key or "expert" in key]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "x: model_type is 'llama'; only 'nemotron_h'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True; only False"),
        ({"attention_bias": True}, "attention_bias is True; only False"),
        ({"mamba_proj_bias": True}, "mamba_proj_bias is True; only False"),
        ({"mlp_hidden_act": "silu"}, "mlp_hidden_act is 'silu'; only 'relu2'"),
        ({"mamba_hidden_act": "gelu"}, "mamba_hidden_act is 'gelu'; only 'silu'"),
        ({"sliding_window": 4096}, "sliding_window is 4096; only None"),
        ({"qkv_bias": True}, "qkv_bias is True; no such bias"),
        ({"quantization_config": {"a": 1}}, "quantization_config is present"),
        ({"hybrid_override_pattern": "M-E*-M"}, r"x: .*mixture-of-experts layers \(E\)"),
        ({"hybrid_override_pattern": "M-|M*-M"}, r"x: .*pipeline marks"),
        ({"hybrid_override_pattern": ["M", "-"]}, r"pattern is \['M', '-'\]; it is a text like"),
        ({"hybrid_override_pattern": 5}, "hybrid_override_pattern is 5; it is a text like 'M-"),
        ({"layers_block_type": 5}, "x: layers_block_type is 5; it is a list of layer names"),
        ({"layers_block_type": "mamba"}, "layers_block_type is 'mamba'; it is a list"),
        ({"layer_types": [["mamba"]]}, r"layer_types has \['mamba'\]; allowed are attention"),
        ({"eos_token_id": []}, r"x: eos_token_id is \[\]; name one token at least"),
        ({"eos_token_id": [[2]]}, "x: key 'eos_token_id': Input should be a valid integer"),
        ({"time_step_min": 0.5}, "x: time_step_min is 0.5 and time_step_max 0.1; steps are drawn"),
        ({"hybrid_override_pattern": None}, "neither hybrid_override_pattern nor"),
        ({"num_hidden_layers": 7}, "num_hidden_layers is 7, but the pattern 'M-M.-M' has 6"),
        ({"layer_types": ["mamba"]}, "layers are given twice and differ"),
        ({"layers_block_type": ["conv"]}, "layers_block_type has 'conv'; allowed are attention"),
        ({"attention_head_dim": 32}, "'head_dim': 16, 'attention_head_dim': 32} are the same"),
        ({"head_dim": None}, "key 'head_dim' or 'attention_head_dim' is missing"),
        ({"n_groups": 4}, "x: mamba_num_heads = 6 is not a multiple of num_groups = 4"),
        ({"hidden_size": "big"}, "x: key 'hidden_size': Input should be a valid integer"),
    ],
)
def test_unsupported_configs_are_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        spec_from_config(HUB | change, "x")


@pytest.mark.parametrize(
    "name",
    [
        *("o/n", "_a/_b", "a.b_c/d-e.f", f"a/{'b' * 96}", f"a/{'b' * 97}", "a/é", "a/b/c"),
        *("runs/tiny-", "a/b.", "a-/b", "a..b/c", "a/b--c", "a/b.git"),
    ],
)
def test_a_hub_id_is_what_the_hub_takes_for_one(name):
    try:
        validate_repo_id(name)
    except HFValidationError:
        assert not is_hub_id(name)
    else:
        assert is_hub_id(name)
