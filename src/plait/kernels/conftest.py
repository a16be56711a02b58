"""Fixtures for kernel tests: uninitialised memory holds NaN, and memory can be measured."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plait.kernels import native


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["native", "torch"])
def form(request):
    """Run a test by the native kernel (where there is one and it takes the dtype) and by torch."""
    with nullcontext() if request.param == "native" else native.off():
        yield request.param


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch):
    """Make whatever reads memory that nothing wrote come out as NaN."""

    def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def allocate_nan(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return allocate_nan

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


class Memory(TorchDispatchMode):
    """Counts the elements of tensors that operations made: the largest, and most alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.peak = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                elements = storage.nbytes() // tensor.element_size()
                self.largest = max(self.largest, elements)
                self._alive.setdefault(StorageWeakRef(storage), elements)
        self._alive = {ref: size for ref, size in self._alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


@pytest.fixture
def memory() -> Callable[[Callable[[], Any]], Memory]:
    """Run a function and return what it took; what existed before does not count unless written."""

    def measure(run: Callable[[], Any]) -> Memory:
        with Memory() as counted:
            run()
        return counted

    return measure
