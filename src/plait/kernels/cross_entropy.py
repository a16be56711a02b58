"""Cross-entropy over a large vocabulary without the logits of a whole sequence.

With 131072 words, the float32 logits of 8192 tokens take 4 GiB, and their softmax and gradient as
much again. Here the head is applied to a chunk of tokens at a time, and since the gradient with
respect to the logits is known as soon as they are (softmax minus one-hot, times the token's
weight), the gradients of hidden and weight are taken right there, in forward; backward only scales
them. So nothing is computed twice and no more than chunk_tokens x V logits ever exist.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from plait.kernels.processor import product_dtype


def chunked_cross_entropy(
    hidden: Float[Tensor, "T D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " T"],
    weights: Float[Tensor, " T"],
    chunk_tokens: int = 256,
) -> Float[Tensor, ""]:
    """Return the sum over tokens of weights[t] * -log softmax(weight hidden[t])[targets[t]].

    A token of weight 0 costs nothing and its target may be anything. Gradients flow to hidden and
    weight, each in its own dtype; none flows to `weights`.
    Numerics: the head is multiplied in hidden.dtype (a wider weight is rounded to it); logits are
    then widened, and the softmax, the sum and the accumulated gradient of the weight are float32
    (float64 stays).
    Raises: ValueError if `chunk_tokens` is not positive.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}; it must be at least 1")
    kept = weights.nonzero()[:, 0]
    if len(kept) < len(weights):
        hidden, targets, weights = (t.index_select(0, kept) for t in (hidden, targets, weights))
    wants_gradient = torch.is_grad_enabled() and (hidden.requires_grad, weight.requires_grad)
    return _ChunkedCrossEntropy.apply(
        hidden, weight, targets, weights, chunk_tokens, wants_gradient or (False, False)
    )  # pyright: ignore


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor,
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
            here, scale = targets[chunk, None], weights[chunk, None].to(dtype)
            rows = hidden[chunk].to(product)
            logits = torch.mm(rows, head.t()).to(dtype)
            log_probabilities = torch.log_softmax(logits, dim=-1)
            total -= (log_probabilities.gather(1, here) * scale).sum()
            if dhidden is None and dweight is None:
                continue
            dlogits = log_probabilities.exp_().mul_(scale).scatter_add_(1, here, -scale)
            dlogits = dlogits.to(product)
            if dhidden is not None:
                dhidden[chunk] = torch.mm(dlogits, head)
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
