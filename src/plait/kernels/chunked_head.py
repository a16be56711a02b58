"""A loss on next-token distributions, one chunk of tokens at a time: what `cross_entropy` and
`kl_divergence` share.

With 131072 words, the float32 logits of 8192 tokens take 4 GiB, and their softmax and gradient as
much again. Here the head is applied to a chunk of tokens at a time, and where the gradient with
respect to the logits is known as soon as they are, the gradients of hidden and weight are taken
right there, in forward; backward only scales them. So nothing is computed twice and no more than
chunk_tokens x V logits ever exist.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from plait.kernels.linear import multiply
from plait.kernels.processor import product_dtype

Comparison = Callable[[Callable[[], Tensor], slice, Tensor], tuple[Tensor, Tensor]]
"""compare(logits, chunk, scale (t,)) -> losses (t,), scale * d loss / d logits in their dtype;
logits() makes those of the chunk (t, V), so that `compare` decides how long they live."""


def of_log_probabilities(
    compare: Callable[[Tensor, slice], tuple[Tensor, Tensor]],
) -> Comparison:
    """Make a comparison of compare(log-probabilities (t, V), chunk) -> losses, d loss / d logits.

    The log-probabilities, in the dtype of the scale, are `compare`'s to change, both results the
    caller's.
    """

    def whole(logits: Callable[[], Tensor], chunk: slice, scale: Tensor) -> tuple[Tensor, Tensor]:
        narrow = logits()
        dtype = narrow.dtype
        log_probabilities = narrow.to(scale.dtype).log_softmax(-1)
        del narrow
        losses, dlogits = compare(log_probabilities, chunk)
        return losses, dlogits.mul_(scale[:, None]).to(dtype)

    return whole


def weighted_sum(
    hidden: Tensor,
    weight: Tensor,
    weights: Tensor,
    kept: Tensor,
    compare: Comparison,
    chunk_tokens: int,
) -> Tensor:
    """Return the sum of weights[t] * loss[t] over `kept`, the tokens of a weight other than 0.

    hidden (T, D), weight (V, D) the head, weights (T,). `compare` sees the kept tokens only, chunk
    by chunk. Gradients flow to hidden and weight, each in its own dtype.
    Numerics: the head is multiplied in hidden.dtype (a wider weight is rounded to it); logits are
    then widened; the sum and the accumulated gradient of the weight are float32 (float64 stays).
    Raises: ValueError if `chunk_tokens` is not positive.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}; it must be at least 1")
    if len(kept) < len(weights):
        hidden, weights = hidden.index_select(0, kept), weights.index_select(0, kept)
    wants_gradient = torch.is_grad_enabled() and (hidden.requires_grad, weight.requires_grad)
    return _WeightedSum.apply(
        hidden, weight, weights, compare, chunk_tokens, wants_gradient or (False, False)
    )  # pyright: ignore


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        weights: Tensor,
        compare: Comparison,
        chunk_tokens: int,
        wants_gradient: tuple[bool, bool],
    ) -> Tensor:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        product = product_dtype(hidden.dtype, hidden.device)
        head = weight.to(hidden.dtype).to(product)
        total = hidden.new_zeros((), dtype=dtype)
        dhidden = torch.empty_like(hidden) if wants_gradient[0] else None
        dweight = torch.zeros_like(weight, dtype=dtype) if wants_gradient[1] else None
        for start in range(0, len(hidden), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            scale, rows = weights[chunk].to(dtype), hidden[chunk].to(product)
            losses, dlogits = compare(partial(multiply, rows, head, None), chunk, scale)
            total += (losses * scale).sum()
            if dhidden is not None:
                dhidden[chunk] = multiply(dlogits, head.t(), None)
            if dweight is not None and dweight.dtype == product:
                dweight.addmm_(dlogits.t(), rows)
            elif dweight is not None:
                dweight += torch.mm(dlogits.t(), rows)
        ctx.save_for_backward(dhidden, dweight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight = ctx.saved_tensors
        dhidden = None if dhidden is None else dhidden * dtotal.to(dhidden.dtype)
        dweight = None if dweight is None else (dweight * dtotal).to(ctx.weight_dtype)
        return dhidden, dweight, None, None, None, None
