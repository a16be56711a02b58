"""What a hybrid model is: the layer pattern and the widths, nothing else.

A pattern is one letter per residual layer: `M` Mamba-2, `*` self-attention, `-` feed-forward.
Every layer is one mixer, x <- x + mixer(norm(x)). There are no positions, no dropout and no tied
embeddings in this family, so there are no fields for them. Foreign spellings of these fields are
known to `model/hf_config` alone; how a shape is executed (dtype, chunk length, devices) is not
part of it.
"""

from collections import Counter
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from plait.core.config import Settings, nearest
from plait.core.errors import ConfigError

LAYER_KINDS = {"M": "mamba2", "*": "attention", "-": "feed_forward"}

PositiveInt = Annotated[int, Field(gt=0)]


class ModelSpec(Settings):
    """Shape of a hybrid Mamba-2 / attention / feed-forward language model.

    Raises: ConfigError for a pattern, head counts or time steps that cannot be built.
    """

    pattern: str
    """One letter per layer: M, * or -."""
    hidden_size: PositiveInt
    """D, width of the residual stream."""
    vocab_size: PositiveInt
    """V, rows of the embedding and of the output head."""
    intermediate_size: PositiveInt
    """F, feed-forward width; two matrices with a squared ReLU between."""

    num_attention_heads: PositiveInt
    """Hq, query heads."""
    num_key_value_heads: PositiveInt
    """Hk, key and value heads; divides num_attention_heads."""
    attention_head_dim: PositiveInt
    """E; Hq * E need not equal hidden_size."""

    mamba_num_heads: PositiveInt
    """H."""
    mamba_head_dim: PositiveInt
    """P."""
    num_groups: PositiveInt
    """G, groups that share B and C; divides mamba_num_heads. Head j reads group j // (H / G)."""
    state_size: PositiveInt
    """N, state columns per head."""
    conv_kernel: Annotated[int, Field(ge=2)] = 4
    """W, taps of the causal depthwise convolution."""

    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    """Epsilon of every RMS norm, the gated one too."""
    time_step_limit: tuple[float, float] = (0.0, float("inf"))
    """Clamp of dt after softplus, at run time."""
    time_step_min: Annotated[float, Field(gt=0)] = 0.001
    """Lower end of dt at initialisation only."""
    time_step_max: Annotated[float, Field(gt=0)] = 0.1
    """Upper end of dt at initialisation only."""
    time_step_floor: Annotated[float, Field(gt=0)] = 1e-4
    """Floor of dt at initialisation only."""
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of embeddings and linears at initialisation."""
    rescale_prenorm_residual: bool = True
    """Divide Mamba output projections by sqrt(number of layers) at initialisation."""

    max_position_embeddings: PositiveInt = 131072
    """Longest context the model is meant for, tokens; the model itself has no positions."""
    use_conv_bias: bool = True
    """Bias of the convolution."""
    use_bias: bool = False
    """Bias of the Mamba input and output projections."""
    mlp_bias: bool = False
    """Bias of the feed-forward projections."""

    bos_token_id: int = 1
    """Token that starts a document."""
    eos_token_id: int = 2
    """Token that ends a document."""
    pad_token_id: int = 12
    """Token written where a row has no text."""

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str) -> str:
        if not pattern:
            raise ConfigError("the layer pattern is empty; write one letter per layer: M, * or -")
        if "E" in pattern:
            raise ConfigError(
                f"layer pattern {pattern!r} has mixture-of-experts layers (E), which this dense "
                "family does not have; allowed letters are M, * and -"
            )
        if marks := sorted(set(pattern) & set("|/")):
            raise ConfigError(
                f"layer pattern {pattern!r} has pipeline marks ({' '.join(marks)}); they place "
                "layers on machines and are not layers: write it without them, "
                f"{pattern.translate(_NO_MARKS)!r}"
            )
        if unknown := sorted(set(pattern) - set(LAYER_KINDS)):
            raise ConfigError(
                f"layer pattern {pattern!r} has unknown letters {' '.join(unknown)!r}; allowed "
                "are M (Mamba-2), * (attention) and - (feed-forward)"
            )
        return pattern

    @model_validator(mode="after")
    def _check_together(self) -> "ModelSpec":
        _divides("mamba_num_heads", self.mamba_num_heads, "num_groups", self.num_groups)
        _divides(
            "num_attention_heads",
            self.num_attention_heads,
            "num_key_value_heads",
            self.num_key_value_heads,
        )
        low, high = self.time_step_limit
        if not 0 <= low < high:
            raise ConfigError(
                f"time_step_limit is ({low}, {high}); it must satisfy 0 <= low < high"
            )
        if not self.time_step_min <= self.time_step_max < float("inf"):
            raise ConfigError(
                f"time_step_min is {self.time_step_min} and time_step_max {self.time_step_max}; "
                "steps are drawn between them: they must satisfy min <= max, both finite"
            )
        return self

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "ModelSpec":
        """Return a named shape, with fields such as `vocab_size` overridden if given.

        Raises: ConfigError for an unknown name or field.
        """
        if name not in PRESETS:
            raise ConfigError(f"no model preset {name!r}; {nearest(name, list(PRESETS))}")
        return cls.parse(PRESETS[name] | overrides, f"model preset {name!r}")

    @property
    def num_layers(self) -> int:
        """L, letters of the pattern."""
        return len(self.pattern)

    @property
    def num_mamba_layers(self) -> int:
        """Layers with letter M."""
        return Counter(self.pattern)["M"]

    @property
    def num_attention_layers(self) -> int:
        """Layers with letter *."""
        return Counter(self.pattern)["*"]

    @property
    def num_feed_forward_layers(self) -> int:
        """Layers with letter -."""
        return Counter(self.pattern)["-"]

    @property
    def d_inner(self) -> int:
        """Width of x and z inside a Mamba layer, H * P."""
        return self.mamba_num_heads * self.mamba_head_dim

    @property
    def conv_dim(self) -> int:
        """Channels of the convolution: x, B and C, H * P + 2 * G * N."""
        return self.d_inner + 2 * self.num_groups * self.state_size

    @property
    def in_proj_dim(self) -> int:
        """Rows of the Mamba input projection: z, x, B, C and dt."""
        return self.d_inner + self.conv_dim + self.mamba_num_heads

    def layer_parameters(self, letter: str) -> int:
        """Return the parameters of one layer of this kind, its norm included."""
        width = self.hidden_size
        if letter == "M":
            inner, conv, heads = self.d_inner, self.conv_dim, self.mamba_num_heads
            biases = (self.in_proj_dim + width) if self.use_bias else 0
            taps = self.conv_kernel + self.use_conv_bias
            mixer = width * (self.in_proj_dim + inner) + conv * taps + 3 * heads + inner + biases
        elif letter == "*":
            rows = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
            mixer = width * rows * self.attention_head_dim
        else:
            biases = (self.intermediate_size + width) if self.mlp_bias else 0
            mixer = 2 * width * self.intermediate_size + biases
        return width + mixer

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model, embedding and output head counted apart."""
        outside = 2 * self.vocab_size * self.hidden_size + self.hidden_size
        counts = Counter(self.pattern)
        return outside + sum(n * self.layer_parameters(letter) for letter, n in counts.items())


def _divides(whole_name: str, whole: int, part_name: str, part: int) -> None:
    if whole % part:
        raise ConfigError(
            f"{whole_name} = {whole} is not a multiple of {part_name} = {part}; heads are shared "
            f"evenly: make {whole_name} a multiple of {part}"
        )


_NO_MARKS = str.maketrans("", "", "|/")

_NANO = {
    "vocab_size": 131072,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "attention_head_dim": 128,
    "mamba_num_heads": 128,
    "mamba_head_dim": 80,
    "num_groups": 8,
    "state_size": 128,
}

PRESETS: dict[str, dict[str, Any]] = {
    # Source: arXiv 2508.14444 section 2.1, table 10; head width 80 follows from released sizes.
    "nano-12b-v2": _NANO
    | {
        "pattern": "M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-",
        "hidden_size": 5120,
        "intermediate_size": 20480,
    },
    "nano-9b-v2": _NANO
    | {
        "pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
        "hidden_size": 4480,
        "intermediate_size": 15680,
    },
    # Source: arXiv 2504.03624.
    "nemotron-h-8b": _NANO
    | {
        "pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
        "hidden_size": 4096,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "mamba_head_dim": 64,
    },
    # Trained from scratch on two processor cores by recipes/tiny. Initial weights are about
    # 1 / sqrt(width), as in wide models: with 0.02, layers this narrow say almost nothing at first
    # and learning takes several times as long.
    "tiny": {
        "pattern": "M-M*-M*-",
        "hidden_size": 64,
        "vocab_size": 2048,
        "intermediate_size": 192,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attention_head_dim": 16,
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "num_groups": 2,
        "state_size": 16,
        "max_position_embeddings": 4096,
        "initializer_range": 0.1,
    },
    # Every ratio different from 1 and no width equal to another: what a test should meet.
    "test": {
        "pattern": "M-M*-M",
        "hidden_size": 48,
        "vocab_size": 97,
        "intermediate_size": 80,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attention_head_dim": 16,
        "mamba_num_heads": 6,
        "mamba_head_dim": 10,
        "num_groups": 2,
        "state_size": 24,
        "initializer_range": 0.15,
        "max_position_embeddings": 1024,
    },
}
