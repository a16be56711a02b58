"""What fits: memory divided among weights, keys and values, states, activations and the rest.

Plain arithmetic over `model.count`, made before anything is allocated, so that a model that does
not fit says so with its numbers and not by dying later.

    memory = weights + activations + fixed + blocks * bytes of a block + (rows + stored) * state

Rows and context come first, as asked for; stored states and further blocks share what is left, up
to all rows at the full context.
"""

import os
from bisect import bisect_left
from typing import NamedTuple

import torch

from plait.core.errors import CapacityError
from plait.core.sizes import format_bytes
from plait.model.count import (
    DeviceKind,
    ServingBytes,
    kv_bytes_per_token,
    serving_bytes,
    state_bytes_per_sequence,
)
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.model.state import BLOCK_TOKENS

DEFAULT_ROWS = 32
_STORED_PER_ROW = 4
"""Most states stored for reuse, for each row."""
_USABLE = 0.9
"""Share of a device's free memory that is planned with when no amount is given."""


class MemoryPlan(NamedTuple):
    """How memory is divided; all sizes in bytes."""

    memory_bytes: int
    num_rows: int
    """Requests that run at once."""
    max_context: int
    """Tokens of prompt and output of one request."""
    num_blocks: int
    """Blocks of keys and values, each of BLOCK_TOKENS tokens."""
    num_stored: int
    """States kept for reuse."""
    block_bytes: int
    state_bytes: int
    weights_bytes: int
    activation_bytes: int
    fixed_bytes: int

    @property
    def used_bytes(self) -> int:
        """What the plan adds up to."""
        pools = self.num_blocks * self.block_bytes
        pools += (self.num_rows + self.num_stored) * self.state_bytes
        return pools + self.weights_bytes + self.activation_bytes + self.fixed_bytes

    def describe(self) -> str:
        """Return the plan as lines of text, one per term."""
        tokens = self.num_blocks * BLOCK_TOKENS
        full = min(tokens // self.max_context, self.num_rows)
        terms = [
            (self.weights_bytes, "weights"),
            (self.num_blocks * self.block_bytes, f"keys and values of {tokens:,} tokens"),
            (self.num_rows * self.state_bytes, f"states of {self.num_rows} running requests"),
            (self.num_stored * self.state_bytes, f"{self.num_stored} states kept for reuse"),
            (self.activation_bytes, "activations"),
            (self.fixed_bytes, "fixed: device context, workspaces"),
            (self.used_bytes, f"of {format_bytes(self.memory_bytes)} planned"),
        ]
        lines = [f"{format_bytes(size):>12}  {text}" for size, text in terms]
        lines.append(
            f"{self.num_rows} requests at once, {self.max_context:,} tokens each at most; "
            f"{full} of them at full length"
        )
        if 0 < self.num_stored < 2:
            lines.append(
                "only one state can be kept for reuse: turns of one chat will be read anew"
            )
        return "\n".join(lines)


def plan_memory(
    spec: ModelSpec,
    memory_bytes: int,
    *,
    weights_bytes: int,
    max_num_seqs: int | None = None,
    max_context: int | None = None,
    prefix_cache: bool = True,
    bytes_per_value: int = 2,
    ssm_bytes_per_value: int = 4,
    prefill_tokens: int = 2048,
    device: DeviceKind = "cuda",
) -> MemoryPlan:
    """Divide `memory_bytes`.

    max_num_seqs: None is up to DEFAULT_ROWS, as many as fit. max_context: None is the model's own
    limit or what fits.
    Raises: CapacityError with the arithmetic if one request of `max_context` tokens, or
    `max_num_seqs` states, do not fit.
    """
    block = kv_bytes_per_token(spec, bytes_per_value) * BLOCK_TOKENS
    state = state_bytes_per_sequence(spec, bytes_per_value, ssm_bytes_per_value)
    rows, context = max_num_seqs or 1, max_context or spec.max_position_embeddings

    def terms(context: int) -> ServingBytes:
        tokens = -(-context // BLOCK_TOKENS) * BLOCK_TOKENS
        return serving_bytes(
            spec,
            1,
            tokens,
            weights_bytes=weights_bytes,
            bytes_per_value=bytes_per_value,
            ssm_bytes_per_value=ssm_bytes_per_value,
            prefill_tokens=prefill_tokens,
            is_packed=max_num_seqs != 1,
            device=device,
        )

    def left(context: int) -> int:
        return memory_bytes - terms(context).total - (rows - 1) * state

    if left(context) < 0 and max_context is None:
        # No term shrinks as the context grows: those that fit come first.
        in_blocks = range(1, context // BLOCK_TOKENS + 1)
        num_fitting = bisect_left(in_blocks, True, key=lambda n: left(n * BLOCK_TOKENS) < 0)
        context = num_fitting * BLOCK_TOKENS
    if context < 1 or left(context) < 0:
        context = max_context or BLOCK_TOKENS
        raise CapacityError(_does_not_fit(memory_bytes, terms(context), rows, context, state))
    spare = left(context)
    if max_num_seqs is None:
        rows += min(DEFAULT_ROWS - 1, spare // 2 // max(state + block, 1))
        spare -= (rows - 1) * state
    num_stored = 0
    if prefix_cache:
        num_stored = min(_STORED_PER_ROW * rows, spare // 2 // state) if state else rows
        spare -= num_stored * state
    per_row = -(-context // BLOCK_TOKENS)
    num_blocks = rows * per_row
    if block:
        num_blocks = per_row + min(num_blocks - per_row, spare // block)
    one = terms(context)
    return MemoryPlan(
        memory_bytes=memory_bytes,
        num_rows=rows,
        max_context=context,
        num_blocks=num_blocks,
        num_stored=num_stored,
        block_bytes=block,
        state_bytes=state,
        weights_bytes=weights_bytes,
        activation_bytes=one.activations,
        fixed_bytes=one.fixed,
    )


def plan_for_model(
    model: HybridLM,
    memory_bytes: int | None,
    *,
    state_dtype: torch.dtype | None = None,
    **wishes: int | bool | None,
) -> MemoryPlan:
    """Divide memory for a model that is loaded; see `plan_memory` for the wishes.

    memory_bytes: None is what its device has free now, and its own weights.
    """
    weight = model.backbone.embeddings.weight
    weights_bytes = sum(each.numel() * each.element_size() for each in model.parameters())
    if memory_bytes is None:
        memory_bytes = weights_bytes + int(_USABLE * free_bytes(weight.device))
    dtype = model.compute_dtype or weight.dtype
    state_dtype = state_dtype or torch.promote_types(dtype, torch.float32)
    return plan_memory(
        model.spec,
        memory_bytes,
        weights_bytes=weights_bytes,
        bytes_per_value=dtype.itemsize,
        ssm_bytes_per_value=state_dtype.itemsize,
        device="cpu" if weight.device.type == "cpu" else "cuda",
        **wishes,  # pyright: ignore[reportArgumentType]
    )


def free_bytes(device: torch.device) -> int:
    """Return memory of a device that nobody uses now; on a CPU, what the system can hand out."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":") for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _does_not_fit(memory: int, one: ServingBytes, rows: int, context: int, state: int) -> str:
    states = rows * state
    total = one.total - one.states + states
    terms = " + ".join(
        [
            f"weights {format_bytes(one.weights)}",
            f"keys and values of one request {format_bytes(one.kv)}",
            f"states {rows} x {format_bytes(state)} = {format_bytes(states)}",
            f"activations {format_bytes(one.activations)}",
            f"fixed {format_bytes(one.fixed)}",
        ]
    )
    return (
        f"the model does not fit in {format_bytes(memory)} with {rows} request(s) at once and a "
        f"context of {context:,} tokens: {terms} = {format_bytes(total)}; "
        "lower max_context or max_num_seqs, or give more memory"
    )
