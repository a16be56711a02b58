"""Distance of a student's next-token distribution from a teacher's, without whole logits.

    KL(teacher || student) = sum_v p(v) (log p(v) - log q(v)),   p, q = softmax of their logits

Forward KL over the full vocabulary at temperature 1, the only loss of distillation in the report.
As in `cross_entropy`, both heads are applied to a chunk of tokens at a time and the gradient with
respect to the student's logits, weight * (q - p), is used where it arises; of the teacher nothing
needs a gradient, and no more than two times chunk_tokens x V logits ever exist.

A teacher that was run earlier may have kept only its k likeliest tokens with log-probabilities.
Everything else is one more outcome, the tail: both distributions are compared on k + 1 outcomes,
which is a lower bound of the full divergence and equal to it when k = V. With P and Q the tails'
masses, the gradient at a token of the tail is weight * q(v) (1 - P / Q).

Source: arXiv 2508.14444 section 4.3 (logits only, forward KL); arXiv 2407.14679 (T = 1).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plait.kernels.chunked_head import of_log_probabilities, weighted_sum
from plait.kernels.processor import product_dtype


class TopK(NamedTuple):
    """A teacher's likeliest tokens at each position; what they leave of 1 is the tail's mass."""

    ids: Int[Tensor, "T k"]
    log_probabilities: Float[Tensor, "T k"]


def chunked_kl(
    hidden: Float[Tensor, "T D"],
    weight: Float[Tensor, "V D"],
    teacher_hidden: Float[Tensor, "T D_teacher"],
    teacher_weight: Float[Tensor, "V D_teacher"],
    weights: Float[Tensor, " T"],
    chunk_tokens: int = 256,
) -> Float[Tensor, ""]:
    """Return the sum over tokens of weights[t] * KL(teacher || student), in nats.

    logits are weight hidden[t] and teacher_weight teacher_hidden[t]; the widths may differ.
    Gradients flow to hidden and weight, each in its own dtype, and nowhere else.
    Numerics: each head is multiplied in the dtype of its hidden states; logits are then widened,
    and softmaxes, the sum and the accumulated gradient of the weight are float32 (float64 stays).
    Raises: ValueError if `chunk_tokens` is not positive.
    """
    kept = weights.nonzero()[:, 0]
    teacher_hidden = teacher_hidden.detach().index_select(0, kept)
    teacher_weight = teacher_weight.detach()

    def compare(log_q: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        log_p = _logits(teacher_hidden[chunk], teacher_weight).to(log_q.dtype).log_softmax(-1)
        p = log_p.exp()
        # A token the teacher excludes (p = 0, log p = -inf) adds nothing.
        divergence = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
        return divergence, log_q.exp().sub_(p)

    return weighted_sum(hidden, weight, weights, kept, of_log_probabilities(compare), chunk_tokens)


def chunked_topk_kl(
    hidden: Float[Tensor, "T D"],
    weight: Float[Tensor, "V D"],
    teacher: TopK,
    weights: Float[Tensor, " T"],
    chunk_tokens: int = 256,
) -> Float[Tensor, ""]:
    """Return the sum of weights[t] * KL on the teacher's k tokens and their tail, in nats.

    Gradients and numerics as in `chunked_kl`.
    Raises: ValueError if `chunk_tokens` is not positive.
    """
    kept = weights.nonzero()[:, 0]
    ids, log_top = (tensor.index_select(0, kept) for tensor in teacher)

    def compare(log_q: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        here, log_p = ids[chunk], log_top[chunk].to(log_q.dtype)
        p, log_q_top = log_p.exp(), log_q.gather(1, here)
        if here.shape[1] == log_q.shape[1]:  # nothing is left for a tail
            gradient = log_q.exp().scatter_add_(1, here, -p)
            return torch.where(p > 0, p * (log_p - log_q_top), 0.0).sum(-1), gradient
        # Summed over what is outside, not as 1 - sum of the top: that would lose small tails.
        log_tail_q = log_q.scatter(1, here, -torch.inf).logsumexp(-1, keepdim=True)
        tail_p = (1.0 - p.sum(-1, keepdim=True)).clamp_min(0.0)
        divergence = torch.where(p > 0, p * (log_p - log_q_top), 0.0).sum(-1)
        tail = torch.where(tail_p > 0, tail_p * (tail_p.log() - log_tail_q), 0.0)
        q = log_q.exp()
        # q / Q as a softmax over the tail, which cannot overflow; overwritten at the k tokens.
        gradient = q - tail_p * (log_q - log_tail_q).exp()
        gradient.scatter_(1, here, q.gather(1, here) - p)
        return divergence + tail[:, 0], gradient

    return weighted_sum(hidden, weight, weights, kept, of_log_probabilities(compare), chunk_tokens)


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    product = product_dtype(hidden.dtype, hidden.device)
    return torch.mm(hidden.to(product), weight.to(hidden.dtype).to(product).t())
