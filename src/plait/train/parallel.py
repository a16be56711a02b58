"""Several processes, one run: data parallel with parameters, gradients and moments sharded (FSDP2).

Started by torchrun, every process holds a slice of each tensor and works on its share of the
micro-batches; without torchrun every function here is the identity. Batches need no splitting:
each process draws all of them and takes every n-th, so the loader's place is the same everywhere
and a run may go on with another number of processes.

It is not tensor, context or pipeline parallel, and the checkpoint is gathered whole on the main
process, which holds for models that fit its memory.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

Value = TypeVar("Value")


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, if it did."""
    if not dist.is_torchelastic_launched() or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()
    try:
        yield
    finally:
        dist.destroy_process_group()


def num_processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def process_index() -> int:
    """Return which of them this is."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Say whether this process writes files."""
    return process_index() == 0


def device() -> torch.device:
    """Return the device of this process: its GPU if there is one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else CPU


CPU = torch.device("cpu")


def shard(model: nn.Module, layers: nn.ModuleList) -> None:
    """Shard a model over all processes: each layer is gathered when it runs, the rest once.

    Gradients are summed over processes, not averaged: the loop divides by the global weight.
    """
    if num_processes() == 1:
        return
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    for module in (*layers, model):
        fully_shard(module)
        sharded = cast(FSDPModule, module)
        sharded.set_gradient_divide_factor(1.0)
        # Gloo has no pre-multiplied sum.
        sharded.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "hidden")


def summed(value: Tensor) -> Tensor:
    """Sum a tensor over processes, in place."""
    if num_processes() > 1:
        dist.all_reduce(value)
    return value


def any_process(flag: bool) -> bool:
    """Say whether the flag is set in any process."""
    return bool(summed(torch.tensor(float(flag), device=device())).item())


def agreed(value: Value) -> Value:
    """Return the main process's value everywhere."""
    if num_processes() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; every process must call it."""
    if num_processes() == 1:
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather sharded tensors in main memory; every process must call it."""
    return {name: whole(tensor).cpu().contiguous() for name, tensor in tensors.items()}


def placed_like(like: Tensor, value: Tensor) -> Tensor:
    """Put a whole tensor where `like` lives: on its device and in its slices."""
    value = value.to(like.device)
    if num_processes() == 1:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value
