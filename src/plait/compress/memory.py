"""What serving a model takes, term by term: the budget that a child must fit.

    weights       every parameter, embedding and output head apart
    kv            keys and values of every attention layer, context * batch tokens
    ssm, conv     states of every Mamba layer, batch rows, whatever the context
    activations   of the tokens that one prefill reads at once
    fixed         what no formula knows: the device's context, workspaces, fragmentation

The formulas are those of the engine's plan (`model/count`); only `fixed` is a guess, and it is
printed with the others. The report counts weights, keys, values and states alone and leaves the
rest to the budget; with activations and a fixed term the budget can be the memory that is really
free.

Source: arXiv 2508.14444 section 4; its 19.66 GiB is 22.06 GiB * 0.95 - 1.3 GiB.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from plait.core.config import Settings
from plait.core.sizes import parse_bytes
from plait.model.count import DeviceKind, ServingBytes, serving_bytes
from plait.model.spec import ModelSpec

PositiveInt = Annotated[int, Field(gt=0)]
Dtype = Literal["float32", "bfloat16", "float16", "float8"]

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}


class Workload(Settings):
    """What is to be served, and in which dtypes."""

    context_tokens: PositiveInt = 131_072
    """Longest sequence, prompt and output together."""
    batch: PositiveInt = 1
    """Sequences of that length at once."""
    prefill_chunk_tokens: PositiveInt = 2048
    """Prompt tokens read in one forward; the engine's default."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of weights, activations and convolution states."""
    kv_dtype: Dtype = "bfloat16"
    """Of keys and values."""
    ssm_dtype: Dtype = "float32"
    """Of SSM states; less costs accuracy (model card of the 9B)."""
    device: DeviceKind = "cuda"
    """Where: a processor scans in shorter blocks, so its activations take less."""
    fixed: str = "0.5GiB"
    """What no formula knows. Our choice: about what a CUDA context and its workspaces take."""

    @field_validator("fixed")
    @classmethod
    def _is_a_size(cls, fixed: str) -> str:
        parse_bytes(fixed)
        return fixed


def memory(spec: ModelSpec, workload: Workload) -> ServingBytes:
    """Return the bytes that serving a model of this shape takes."""
    return serving_bytes(
        spec,
        workload.batch,
        workload.context_tokens,
        bytes_per_value=BYTES_PER_VALUE[workload.dtype],
        kv_bytes_per_value=BYTES_PER_VALUE[workload.kv_dtype],
        ssm_bytes_per_value=BYTES_PER_VALUE[workload.ssm_dtype],
        prefill_tokens=workload.prefill_chunk_tokens,
        fixed_bytes=parse_bytes(workload.fixed),
        device=workload.device,
    )
