"""The Hugging Face `config.json` of this family, in every spelling that is met, to and from a spec.

Read: the hub's pattern string, the layer lists of transformers 5 (two eras of names), `mamba_*` and
Megatron aliases, infinity as a bare `Infinity` or as {"__float__": "Infinity"}. Written: the hub's
spelling, because every engine reads that one; no layer list, because each era of transformers
refuses the other's names and all derive it from the pattern.

What the model cannot do (experts, tied embeddings, other activations, unknown biases, quantised
weights) is refused by name; fields without effect on a dense model are ignored.
"""

import json
import re
from pathlib import Path
from typing import Any

from plait.core.errors import CheckpointError, ConfigError
from plait.model.spec import ModelSpec

CONFIG_FILE = "config.json"
PATTERN_KEY = "hybrid_override_pattern"
HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")

# Field of ModelSpec: the names it goes by; the first is the one written.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size",),
    "vocab_size": ("vocab_size",),
    "intermediate_size": ("intermediate_size",),
    "num_attention_heads": ("num_attention_heads",),
    "num_key_value_heads": ("num_key_value_heads", "num_query_groups"),
    "attention_head_dim": ("head_dim", "attention_head_dim"),
    "mamba_num_heads": ("mamba_num_heads",),
    "mamba_head_dim": ("mamba_head_dim",),
    "num_groups": ("n_groups", "mamba_n_groups", "mamba_num_groups"),
    "state_size": ("ssm_state_size", "mamba_state_dim"),
    "conv_kernel": ("conv_kernel", "mamba_d_conv"),
    "norm_eps": ("layer_norm_epsilon",),
    "time_step_limit": ("time_step_limit", "mamba_dt_limit"),
    "time_step_min": ("time_step_min", "mamba_dt_min"),
    "time_step_max": ("time_step_max", "mamba_dt_max"),
    "time_step_floor": ("time_step_floor", "mamba_dt_init_floor"),
    "initializer_range": ("initializer_range",),
    "rescale_prenorm_residual": ("rescale_prenorm_residual",),
    "max_position_embeddings": ("max_position_embeddings",),
    "use_conv_bias": ("use_conv_bias", "mamba_conv_bias"),
    "use_bias": ("use_bias",),
    "mlp_bias": ("mlp_bias",),
    "bos_token_id": ("bos_token_id",),
    "eos_token_id": ("eos_token_id",),
    "pad_token_id": ("pad_token_id",),
}
LAYER_LETTERS = {
    "linear_attention": "M",
    "mamba": "M",
    "full_attention": "*",
    "attention": "*",
    "mlp": "-",
    "moe": "E",
}
# What the architecture fixes: written with these values, refused with any other.
FIXED: dict[str, Any] = {
    "attention_bias": False,
    "mamba_hidden_act": "silu",
    "mamba_proj_bias": False,
    "mlp_hidden_act": "relu2",
    "sliding_window": None,
    "tie_word_embeddings": False,
}
# Read by other engines, without a meaning here.
ADVICE: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"],
    "attention_dropout": 0.0,
    "chunk_size": 128,
    "expand": 2,
    "hidden_dropout": 0.0,
    "mamba_ssm_cache_dtype": "float32",
    "model_type": "nemotron_h",
    "num_logits_to_keep": 1,
    "residual_in_fp32": False,
    "use_cache": True,
}


def read_spec(source: str | Path) -> ModelSpec:
    """Read the shape of a model directory, a config.json or a Hugging Face hub id.

    Raises: CheckpointError if there is no readable config, ConfigError if it asks for something
    this family does not have.
    """
    path = Path(source)
    if path.is_dir():
        path = path / CONFIG_FILE
    if not path.exists():
        path = _download_config(source) if is_hub_id(source) else path
    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_hook=_plain_float)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; a model is a directory with {CONFIG_FILE} and safetensors, "
            "or a hub id such as nvidia/NVIDIA-Nemotron-Nano-9B-v2"
        ) from None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not a JSON object, so not the config of a model")
    return spec_from_config(config, str(path))


def is_hub_id(source: str | Path) -> bool:
    """Say whether this is the name of a hub repository rather than a path on this machine."""
    name = str(source)
    allowed = HUB_ID.fullmatch(name) is not None and _NO_HUB_ID.search(name) is None
    return allowed and not Path(source).exists()


# What the hub allows in no name: two marks in a row or one at an end, the ending of a git address,
# more than 96 letters, any that is not ASCII.
_NO_HUB_ID = re.compile(r"--|\.\.|[-.]/|[-.]$|\.git$|[^/]{97}$|[^!-~]")


def spec_from_config(config: dict[str, Any], source: str) -> ModelSpec:
    """Return the spec of a parsed config; `source` names it in errors.

    Raises: ConfigError naming the key, what was found and what is allowed.
    """
    _refuse_unsupported(config, source)
    table: dict[str, Any] = {"pattern": _read_pattern(config, source)}
    for field, names in SPELLINGS.items():
        found = {name: config[name] for name in names if config.get(name) is not None}
        values = list(found.values())
        if any(value != values[0] for value in values[1:]):
            raise ConfigError(f"{source}: {found} are the same field; remove the wrong one")
        if values:
            table[field] = values[0]
        elif ModelSpec.model_fields[field].is_required():
            raise ConfigError(f"{source}: key {' or '.join(map(repr, names))} is missing")
    if isinstance(ends := table.get("eos_token_id"), list):
        if not ends:
            raise ConfigError(
                f"{source}: eos_token_id is []; name one token at least or leave it out"
            )
        # The first ends a document; further ones end a turn and belong to generation_config.json.
        table["eos_token_id"] = ends[0]
    return ModelSpec.parse(table, source)


def config_from_spec(spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """Return the config in the hub's spelling; dtype is a name such as `bfloat16`."""
    config = {names[0]: getattr(spec, field) for field, names in SPELLINGS.items()}
    config[PATTERN_KEY] = spec.pattern
    config["num_hidden_layers"] = spec.num_layers
    config["torch_dtype"] = dtype
    return dict(sorted((config | FIXED | ADVICE).items()))


def _refuse_unsupported(config: dict[str, Any], source: str) -> None:
    model_type = config.get("model_type", ADVICE["model_type"])
    if model_type != ADVICE["model_type"]:
        raise ConfigError(
            f"{source}: model_type is {model_type!r}; only 'nemotron_h' models can be read"
        )
    for key, allowed in FIXED.items():
        if (found := config.get(key, allowed)) != allowed:
            raise ConfigError(f"{source}: {key} is {found!r}; only {allowed!r} is supported")
    if config.get("quantization_config"):
        raise ConfigError(
            f"{source}: quantization_config is present, so the weights are quantised; "
            "use the bfloat16 release of this model"
        )
    known = {name for names in SPELLINGS.values() for name in names} | set(FIXED)
    for key, found in config.items():
        if key.endswith("_bias") and found and key not in known:
            raise ConfigError(f"{source}: {key} is {found!r}; no such bias is supported")


def _read_pattern(config: dict[str, Any], source: str) -> str:
    patterns: dict[str, str] = {}
    if (pattern := config.get(PATTERN_KEY)) is not None:
        if not isinstance(pattern, str):
            raise ConfigError(f"{source}: {PATTERN_KEY} is {pattern!r}; it is a text like 'M-M*-'")
        patterns[PATTERN_KEY] = pattern
    for key in ("layers_block_type", "layer_types"):
        if (kinds := config.get(key)) is not None:
            if not isinstance(kinds, list):
                raise ConfigError(f"{source}: {key} is {kinds!r}; it is a list of layer names")
            patterns[key] = "".join(_layer_letter(kind, key, source) for kind in kinds)
    if not patterns:
        raise ConfigError(
            f"{source}: neither {PATTERN_KEY} nor layers_block_type says which layers the model has"
        )
    if len(set(patterns.values())) > 1:
        raise ConfigError(f"{source}: layers are given twice and differ: {patterns}")
    pattern = next(iter(patterns.values()))
    count = config.get("num_hidden_layers")
    # ModelSpec refuses pipeline marks (| and /) by name; here they are no layers.
    num_letters = sum(letter not in "|/" for letter in pattern)
    if count is not None and count != num_letters:
        raise ConfigError(
            f"{source}: num_hidden_layers is {count}, but the pattern {pattern!r} has "
            f"{num_letters} letters"
        )
    return pattern


def _layer_letter(kind: Any, key: str, source: str) -> str:
    if not isinstance(kind, str) or kind not in LAYER_LETTERS:
        raise ConfigError(
            f"{source}: {key} has {kind!r}; allowed are {', '.join(sorted(LAYER_LETTERS))}"
        )
    return LAYER_LETTERS[kind]


def _plain_float(value: dict[str, Any]) -> Any:
    return float(value["__float__"]) if set(value) == {"__float__"} else value


def _download_config(hub_id: str | Path) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(str(hub_id), CONFIG_FILE))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"{hub_id}: no such directory, and the hub did not give its {CONFIG_FILE}: {error}"
        ) from None
