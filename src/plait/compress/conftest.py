from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Allocated(TorchDispatchMode):
    """Counts the bytes of tensors that operations made, most alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {StorageWeakRef(t.untyped_storage()) for t in tree_leaves(args) if _is(t)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if _is(tensor):
                storage = tensor.untyped_storage()
                if StorageWeakRef(storage) not in known:
                    self._alive.setdefault(StorageWeakRef(storage), storage.nbytes())
        self._alive = {ref: size for ref, size in self._alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


def _is(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


@pytest.fixture
def allocated() -> Callable[[Callable[[], Any]], int]:
    """Run a function and return the most bytes that its new tensors held at once."""

    def measure(run: Callable[[], Any]) -> int:
        with _Allocated() as counted:
            run()
        return counted.peak

    return measure
