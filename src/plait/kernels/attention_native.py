"""Causal attention by way of the native kernel, forward only: `attention` is the door and explains
it."""

import torch
from torch import Tensor

from plait.kernels import native

_VECTOR_BYTES = 64
_FEWEST_TOKENS = 16
"""New tokens from which on it pays to bring keys and values into another order."""


def takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Say whether the native form may compute attention of q (B, T, Hq, E) to k and v."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
        return False
    return (
        native.takes(q, k, v)
        and q.dtype == k.dtype == v.dtype
        and q.shape[1] >= _FEWEST_TOKENS
        and q.shape[3] * q.element_size() % _VECTOR_BYTES == 0
        and q.stride(1) * q.element_size() % 4 == 0  # queries are read four bytes at a time
        and all(t.stride(3) == 1 for t in (q, k, v))
    )


def forward(q: Tensor, k: Tensor, v: Tensor, before: list[int]) -> Tensor:
    """Let the new tokens of each row b attend to the `before[b]` first of its keys and, causally,
    to those behind these."""
    y = native.empty_like(q)
    sizes = k.shape[2], q.shape[2] // k.shape[2], q.shape[3]
    for q_, k_, v_, y_, length in zip(q, k, v, y, before, strict=True):
        strides = [stride for t in (q_, k_, v_) for stride in t.stride()[:2]]
        native.call("attention", q.dtype, q_, k_, v_, y_, *strides, len(q_), length, *sizes)
    return y
