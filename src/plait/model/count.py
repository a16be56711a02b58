"""What a model costs, from its shape alone: parameters, FLOPs and bytes.

Nothing here builds a model or needs torch. FLOPs are those of the mathematics (a multiply and an
add count as two), not of an implementation that recomputes or works in chunks.
"""

from typing import Literal, NamedTuple

from plait.core.sizes import GIB, format_bytes
from plait.kernels import native
from plait.kernels.tiles import ATTENTION_VALUES, QUERY_TILE, SCAN_BLOCKS, TILE_TOKENS
from plait.model.spec import ModelSpec

DeviceKind = Literal["cpu", "cuda"]


def flops_per_token(spec: ModelSpec, context_tokens: int | float) -> int | float:
    """Return forward FLOPs of one token that attends to `context_tokens` tokens, itself included.

    matrices 2 * weights;  attention 4 Hq E context;  convolution 2 W conv_dim;  scan 5 H P N
    (decay, outer product, add, times C, sum). Norms and activations are left out; the output head
    is counted, the embedding look-up is free.
    """
    width = spec.hidden_size
    query_width = spec.num_attention_heads * spec.attention_head_dim
    key_width = spec.num_key_value_heads * spec.attention_head_dim
    mamba = (
        2 * width * (spec.in_proj_dim + spec.d_inner)
        + 2 * spec.conv_kernel * spec.conv_dim
        + 5 * spec.d_inner * spec.state_size
    )
    attention = 2 * width * (2 * query_width + 2 * key_width) + 4 * query_width * context_tokens
    feed_forward = 4 * width * spec.intermediate_size
    return (
        spec.num_mamba_layers * mamba
        + spec.num_attention_layers * attention
        + spec.num_feed_forward_layers * feed_forward
        + 2 * width * spec.vocab_size
    )


def training_flops_per_token(spec: ModelSpec, sequence_tokens: int) -> int | float:
    """Return forward and backward FLOPs per token of sequences of this length: three forwards.

    The mean causal context is (sequence_tokens + 1) / 2. For short sequences this is the usual
    6 * parameters, without the embedding.
    """
    return 3 * flops_per_token(spec, (sequence_tokens + 1) / 2)


def kv_bytes_per_token(spec: ModelSpec, bytes_per_value: int = 2) -> int:
    """Return bytes of keys and values that one token of context adds."""
    row = spec.num_key_value_heads * spec.attention_head_dim
    return spec.num_attention_layers * 2 * row * bytes_per_value


def ssm_bytes_per_sequence(spec: ModelSpec, bytes_per_value: int = 4) -> int:
    """Return bytes of SSM state of one sequence, whatever its length; float32 by default."""
    return spec.num_mamba_layers * spec.d_inner * spec.state_size * bytes_per_value


def conv_bytes_per_sequence(spec: ModelSpec, bytes_per_value: int = 2) -> int:
    """Return bytes of convolution state of one sequence."""
    return spec.num_mamba_layers * spec.conv_dim * (spec.conv_kernel - 1) * bytes_per_value


def state_bytes_per_sequence(
    spec: ModelSpec, bytes_per_value: int = 2, ssm_bytes_per_value: int = 4
) -> int:
    """Return bytes of SSM and convolution state of one sequence."""
    conv = conv_bytes_per_sequence(spec, bytes_per_value)
    return ssm_bytes_per_sequence(spec, ssm_bytes_per_value) + conv


def prefill_bytes(
    spec: ModelSpec,
    num_tokens: int,
    context_tokens: int,
    *,
    bytes_per_value: int = 2,
    is_packed: bool = True,
    device: DeviceKind = "cuda",
) -> int:
    """Return the most bytes of activations that live at once while `num_tokens` are read.

    Three arrays as wide as the residual stream: itself, its normed copy, and what a mixer returns.
    Beside them works one mixer at a time, TILE_TOKENS tokens together or, of Mamba layers, as many
    prompts as are packed (`is_packed`):

        Mamba-2         in_proj, convolution and outputs of the scan, and what a block of it takes
        feed-forward    the widened tokens
        attention       queries, keys, values and outputs; what is brought together of a sequence
                        that has `context_tokens` tokens by then, and the torch form's mask

    Logits are counted for one position only, in float32: the others are never made.
    """
    tile = num_tokens if is_packed else min(num_tokens, TILE_TOKENS)
    mixers = {
        "M": _mamba_bytes(spec, tile, is_packed, bytes_per_value, device),
        "-": min(num_tokens, TILE_TOKENS) * spec.intermediate_size * bytes_per_value,
        "*": _attention_bytes(spec, num_tokens, context_tokens, bytes_per_value, device),
    }
    stream = 3 * num_tokens * spec.hidden_size * bytes_per_value
    return stream + max(mixers[letter] for letter in set(spec.pattern)) + 4 * spec.vocab_size


def _mamba_bytes(
    spec: ModelSpec, num_tokens: int, is_packed: bool, bytes_per_value: int, device: str
) -> int:
    """Return what a Mamba layer holds while it scans: in_proj, the convolution, dt, the output and
    the states, which are few beside the others, so that two prompts stand for all that are packed.

    The native kernel needs no more and writes the output as wide as x. The torch form has it in
    float32, takes the states of packed prompts together and apart, and of a block of the scan: dt
    x, what enters and leaves it and the output, as wide as x, a copy of x itself where x is
    shorter; B and C; decays between the tokens of a chunk for every head.
    """
    held = num_tokens * (spec.in_proj_dim + spec.conv_dim) * bytes_per_value
    state = 4 * spec.d_inner * spec.state_size
    if device == "cpu" and native.takes():
        dt = 4 * num_tokens * spec.mamba_num_heads
        states = (1 + is_packed) * state
        return held + states + dt + num_tokens * spec.d_inner * bytes_per_value
    chunk_tokens, block_tokens = SCAN_BLOCKS[device]
    block = min(num_tokens, block_tokens or num_tokens)
    chunk_tokens = min(chunk_tokens, block)
    heads, groups = spec.mamba_num_heads, spec.num_groups
    num_wide = 4 if bytes_per_value >= 4 else 5
    per_block_token = num_wide * spec.d_inner + 2 * groups * spec.state_size
    per_block_token += (heads + groups) * chunk_tokens + 5 * heads
    in_float32 = num_tokens * (spec.d_inner + heads) + block * per_block_token
    states = (4 if is_packed else 1) * state
    return held + states + 4 * in_float32


def _attention_bytes(
    spec: ModelSpec, num_tokens: int, context_tokens: int, bytes_per_value: int, device: str
) -> int:
    """Return what an attention layer holds beside the cache; see `kernels/attention`.

    The native kernel needs no mask.
    """
    num_kv, width = spec.num_key_value_heads, spec.attention_head_dim
    shared = spec.num_attention_heads // num_kv
    own = num_tokens * 2 * (spec.num_attention_heads + num_kv) * width
    per_head = context_tokens * width
    together = max(per_head, min(num_kv * per_head, ATTENTION_VALUES))
    held = (own + 2 * together) * bytes_per_value
    if device == "cpu" and native.takes():
        return held
    per_query = shared * context_tokens
    mask = max(per_query, min(min(QUERY_TILE, num_tokens) * per_query, ATTENTION_VALUES))
    return held + mask * (1 + bytes_per_value)


class ServingBytes(NamedTuple):
    """What running a model takes, in bytes; see `serving_bytes`."""

    weights: int
    kv: int
    ssm: int
    conv: int
    activations: int
    fixed: int

    @property
    def states(self) -> int:
        """SSM and convolution states together."""
        return self.ssm + self.conv

    @property
    def total(self) -> int:
        """Sum of all terms."""
        return sum(self)

    def describe(self) -> str:
        """Say every term and their sum in one line."""
        terms = ", ".join(f"{name} {format_bytes(size)}" for name, size in self._asdict().items())
        return f"{terms}: {format_bytes(self.total)}"


FIXED_BYTES = GIB // 2
"""Device context, library workspaces and fragmentation; a guess that a measurement may replace."""


def serving_bytes(
    spec: ModelSpec,
    num_sequences: int,
    context_tokens: int,
    *,
    weights_bytes: int | None = None,
    bytes_per_value: int = 2,
    kv_bytes_per_value: int | None = None,
    ssm_bytes_per_value: int = 4,
    prefill_tokens: int = 2048,
    is_packed: bool | None = None,
    fixed_bytes: int = FIXED_BYTES,
    device: DeviceKind = "cuda",
) -> ServingBytes:
    """Return what it takes to run `num_sequences` sequences of `context_tokens` tokens each.

    weights + sequences * (KV per token * context + state) + activations + fixed.
    weights_bytes: None counts every parameter at `bytes_per_value`. kv_bytes_per_value: None is
    `bytes_per_value`. Activations are those of a prompt piece of `prefill_tokens` tokens at the end
    of the context; is_packed: None is if there are several sequences.
    """
    cached = num_sequences * context_tokens
    return ServingBytes(
        weights=bytes_per_value * spec.num_parameters if weights_bytes is None else weights_bytes,
        kv=cached * kv_bytes_per_token(spec, kv_bytes_per_value or bytes_per_value),
        ssm=num_sequences * ssm_bytes_per_sequence(spec, ssm_bytes_per_value),
        conv=num_sequences * conv_bytes_per_sequence(spec, bytes_per_value),
        activations=prefill_bytes(
            spec,
            min(prefill_tokens, cached),
            context_tokens,
            bytes_per_value=bytes_per_value,
            is_packed=num_sequences > 1 if is_packed is None else is_packed,
            device=device,
        ),
        fixed=fixed_bytes,
    )


class Row(NamedTuple):
    """One line of a description."""

    label: str
    value: str


def describe(spec: ModelSpec) -> list[Row]:
    """Return the facts of a shape as labelled text, in reading order."""
    mixers = (
        f"{spec.num_layers} = {spec.num_mamba_layers} Mamba-2 + {spec.num_feed_forward_layers} "
        f"feed-forward + {spec.num_attention_layers} attention"
    )
    kv_bytes = kv_bytes_per_token(spec)
    fixed_bytes = ssm_bytes_per_sequence(spec) + conv_bytes_per_sequence(spec)
    rows = [
        Row("parameters", f"{spec.num_parameters:,}"),
        Row("layers", mixers),
        Row("pattern", spec.pattern),
        Row("hidden size", f"{spec.hidden_size:,}"),
        Row("feed-forward width", f"{spec.intermediate_size:,}"),
        Row("vocabulary", f"{spec.vocab_size:,}"),
        Row(
            "attention heads",
            f"{spec.num_attention_heads} query, {spec.num_key_value_heads} key/value, "
            f"{spec.attention_head_dim} wide",
        ),
        Row("Mamba heads", f"{spec.mamba_num_heads} of {spec.mamba_head_dim}"),
        Row("Mamba state", f"{spec.state_size} columns, {spec.num_groups} groups"),
        Row("longest context", f"{spec.max_position_embeddings:,} tokens"),
        Row("weights, bfloat16", format_bytes(2 * spec.num_parameters)),
        Row("weights, float32", format_bytes(4 * spec.num_parameters)),
        Row("KV cache per token, bfloat16", format_bytes(kv_bytes)),
        Row("SSM state per sequence, float32", format_bytes(ssm_bytes_per_sequence(spec))),
        Row(
            "convolution state per sequence, bfloat16", format_bytes(conv_bytes_per_sequence(spec))
        ),
    ]
    if kv_bytes:
        rows.append(Row("state equals the KV cache of", f"{fixed_bytes // kv_bytes:,} tokens"))
    for context in (1, spec.max_position_embeddings):
        flops = flops_per_token(spec, context)
        rows.append(Row(f"forward at context {context:,}", f"{flops / 1e9:,.3g} GFLOP per token"))
    return rows
