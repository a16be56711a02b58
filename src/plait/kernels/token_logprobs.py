"""Log-probabilities of given tokens without the logits of a whole sequence.

    logprobs[t] = (weight hidden[t])[targets[t]] - logsumexp(weight hidden[t])

Preference and policy losses are curves of these numbers, not sums of them, so what comes back for
each token in backward is not known in forward, as it is in `cross_entropy`. Forward therefore keeps
one float per token, the log of the normaliser, and backward makes each chunk of logits again: a
second product with the head in exchange for never holding more than chunk_tokens x V of them.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from plait.kernels.processor import product_dtype


def token_logprobs(
    hidden: Float[Tensor, "T D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " T"],
    chunk_tokens: int = 256,
) -> Float[Tensor, " T"]:
    """Return log softmax(weight hidden[t])[targets[t]] for every token, in nats.

    Gradients flow to hidden and weight, each in its own dtype.
    Numerics: the head is multiplied in hidden.dtype (a wider weight is rounded to it); logits are
    then widened, and normaliser, result and the accumulated gradient of the weight are float32
    (float64 stays).
    Raises: ValueError if `chunk_tokens` is not positive.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}; it must be at least 1")
    return _TokenLogprobs.apply(hidden, weight, targets, chunk_tokens)  # pyright: ignore


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int
    ) -> Tensor:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        product = product_dtype(hidden.dtype, hidden.device)
        head = weight.to(hidden.dtype).to(product)
        logprobs = hidden.new_empty(len(hidden), dtype=dtype)
        normalisers = torch.empty_like(logprobs)
        for start in range(0, len(hidden), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            logits = torch.mm(hidden[chunk].to(product), head.t()).to(dtype)
            normalisers[chunk] = torch.logsumexp(logits, dim=-1)
            logprobs[chunk] = logits.gather(1, targets[chunk, None])[:, 0] - normalisers[chunk]
        ctx.save_for_backward(hidden, weight, targets, normalisers)
        ctx.chunk_tokens = chunk_tokens
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlogprobs: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normalisers = ctx.saved_tensors
        dtype = normalisers.dtype
        product = product_dtype(hidden.dtype, hidden.device)
        head = weight.to(hidden.dtype).to(product)
        for_hidden, for_weight, *_ = ctx.needs_input_grad
        dhidden = torch.empty_like(hidden) if for_hidden else None
        dweight = torch.zeros_like(weight, dtype=dtype) if for_weight else None
        for start in range(0, len(hidden), ctx.chunk_tokens):
            chunk = slice(start, start + ctx.chunk_tokens)
            rows, scale = hidden[chunk].to(product), dlogprobs[chunk, None]
            logits = torch.mm(rows, head.t()).to(dtype)
            dlogits = logits.sub_(normalisers[chunk, None]).exp_().mul_(-scale)
            dlogits = dlogits.scatter_add_(1, targets[chunk, None], scale).to(product)
            if dhidden is not None:
                dhidden[chunk] = torch.mm(dlogits, head)
            if dweight is not None:
                dweight += torch.mm(dlogits.t(), rows)
        return dhidden, None if dweight is None else dweight.to(weight.dtype), None, None
