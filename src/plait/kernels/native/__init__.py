"""The fast forms of the CPU kernels in C++: optional, and behind the same doors as the torch forms.

Each door asks `native.takes(...)` of its tensors and calls `native.call`; where the answer is no
(another device or dtype, no library) it computes in plain torch, which is what the native form is
tested against. The library knows nothing of torch: it gets pointers and sizes through ctypes. It
uses the OpenMP runtime that torch has loaded, and as many threads as torch would.

PLAIT_NATIVE=0 in the environment, or `native.off()` around a block, leaves everything to torch.
"""

import ctypes
import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from plait.kernels.native.build import library_path, processor

_SUFFIXES = {torch.float32: "_float32", torch.bfloat16: "_bfloat16"}
_PLAIN = Tensor, torch.nn.Parameter
_is_off = False


class Library:
    """The loaded library, or the reason why there is none."""

    def __init__(self) -> None:
        self.functions: ctypes.CDLL | None = None
        self.kind = processor()
        if os.environ.get("PLAIT_NATIVE") == "0":
            self.status = "off: PLAIT_NATIVE is 0"
        elif self.kind is None:
            self.status = "off: not written for this kind of processor"
        elif not (path := library_path(self.kind)).exists():
            self.status = "off: not built, run `python -m plait.kernels.native.build`"
        else:
            try:
                self.functions = ctypes.CDLL(str(path))
                self.status = f"on, {self.kind}"
            except OSError as error:
                self.status = f"off: {error}"


@cache
def library() -> Library:
    """Return the library, loaded on first use."""
    return Library()


def takes(*tensors: Tensor | None, dtypes: Container[torch.dtype] = tuple(_SUFFIXES)) -> bool:
    """Say whether the native form may compute: plain tensors on the CPU of these dtypes."""
    if _is_off or library().functions is None:
        return False
    return all(
        t is None or (type(t) in _PLAIN and t.device.type == "cpu" and t.dtype in dtypes)
        for t in tensors
    )


@contextmanager
def off() -> Iterator[None]:
    """Leave everything to torch for a while."""
    global _is_off
    before, _is_off = _is_off, True
    try:
        yield
    finally:
        _is_off = before


def call(name: str, dtype: torch.dtype, *arguments: Tensor | int | float | None) -> None:
    """Call a function's form for `dtype` with pointers, int64 and float64, then the thread count.

    The caller vouches for dtypes, shapes and strides, and holds the tensors while it runs.
    """
    function = getattr(library().functions, name + _SUFFIXES[dtype])
    function.restype = None
    function(*map(_argument, arguments), ctypes.c_int64(torch.get_num_threads()))


def rows(x: Tensor) -> Tensor:
    """Return a tensor (rows, width) with each row in one piece, as kernels read it."""
    return x if x.stride(1) == 1 else x.contiguous()


def empty_like(x: Tensor) -> Tensor:
    """Return uninitialised contiguous memory, as kernels write it."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_Argument = ctypes.c_void_p | ctypes.c_int64 | ctypes.c_double


def _argument(value: Tensor | int | float | None) -> _Argument:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if value is None:
        return ctypes.c_void_p()
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int64(value)
