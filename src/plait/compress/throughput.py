"""How fast a shape could be served at best: bytes and FLOPs over what the hardware can move.

    prefill   FLOPs of the prompt / sustained FLOP/s, every sequence
    decode    one step reads all weights but the embedding, every sequence's keys and values, and
              reads and writes its states; it takes these bytes / memory bandwidth

A ceiling, not a forecast: the report's engine reached about 0.7 of it. It orders candidates, which
is all the search asks of it; the batch is the largest that fits the device with every sequence at
its full length.

Source: arXiv 2508.14444 table 10 for the workload (8k in, 16k out, one A10G).
"""

from bisect import bisect_left
from typing import Annotated, NamedTuple

from pydantic import Field

from plait.compress.memory import BYTES_PER_VALUE, Workload, memory
from plait.core.config import Settings
from plait.model.count import (
    conv_bytes_per_sequence,
    flops_per_token,
    kv_bytes_per_token,
    ssm_bytes_per_sequence,
)
from plait.model.spec import ModelSpec

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]

MAX_BATCH = 4096


class Hardware(Settings):
    """A device and the requests it is to serve. Defaults: the report's A10G and its workload."""

    name: str = "A10G"
    """What it is called in tables."""
    memory_gib: PositiveFloat = 22.06
    """All of its memory."""
    usable_share: Annotated[float, Field(gt=0, le=1)] = 0.95
    """What is left of it for an engine."""
    gb_per_s: PositiveFloat = 600.0
    """Memory bandwidth, 10^9 bytes."""
    tflop_per_s: PositiveFloat = 42.0
    """Sustained by matrix products: 0.6 of the A10G's 70."""
    input_tokens: PositiveInt = 8192
    """Prompt of a request."""
    output_tokens: PositiveInt = 16_384
    """Answer of a request."""

    @property
    def memory_bytes(self) -> int:
        """What an engine may take."""
        return int(self.memory_gib * self.usable_share * 2**30)


class Throughput(NamedTuple):
    """A ceiling and the batch it belongs to."""

    tokens_per_s: float
    """New tokens of all sequences together; 0 if not even one sequence fits."""
    batch: int


def throughput(
    spec: ModelSpec, hardware: Hardware, workload: Workload, batch: int | None = None
) -> Throughput:
    """Return the ceiling at `batch` sequences, or at the most that fit; dtypes are `workload`'s."""
    batch = largest_batch(spec, hardware, workload) if batch is None else batch
    if batch == 0:
        return Throughput(0.0, 0)
    num_in, num_out = hardware.input_tokens, hardware.output_tokens
    prefill_flops = batch * num_in * flops_per_token(spec, (num_in + 1) / 2)
    step_bytes = _streamed_weights(spec, workload) + batch * _bytes_per_sequence(
        spec, workload, num_in + (num_out + 1) / 2
    )
    seconds = prefill_flops / (hardware.tflop_per_s * 1e12)
    seconds += num_out * step_bytes / (hardware.gb_per_s * 1e9)
    return Throughput(batch * num_out / seconds, batch)


def largest_batch(spec: ModelSpec, hardware: Hardware, workload: Workload) -> int:
    """Return how many sequences of a whole request fit at once."""
    longest = hardware.input_tokens + hardware.output_tokens

    def is_too_large(batch: int) -> bool:
        of = workload.model_copy(update={"context_tokens": longest, "batch": batch})
        return memory(spec, of).total > hardware.memory_bytes

    return bisect_left(range(1, MAX_BATCH + 1), True, key=is_too_large)


def _streamed_weights(spec: ModelSpec, workload: Workload) -> int:
    """Return bytes of weights that a decoding step reads: all but the embedding table."""
    streamed = spec.num_parameters - spec.vocab_size * spec.hidden_size
    return streamed * BYTES_PER_VALUE[workload.dtype]


def _bytes_per_sequence(spec: ModelSpec, workload: Workload, context_tokens: float) -> float:
    """Return bytes that a decoding step moves for one sequence: caches read, states rewritten."""
    value = BYTES_PER_VALUE[workload.dtype]
    states = ssm_bytes_per_sequence(spec, BYTES_PER_VALUE[workload.ssm_dtype])
    states += conv_bytes_per_sequence(spec, value)
    kv = kv_bytes_per_token(spec, BYTES_PER_VALUE[workload.kv_dtype])
    return 2 * states + context_tokens * kv
