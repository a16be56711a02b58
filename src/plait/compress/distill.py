"""Distillation: a student learns its teacher's next-token distribution and nothing else.

    loss = sum_t weights_t * KL(teacher || student at t) / sum_t weights_t

Forward KL over the full vocabulary at temperature 1; no cross-entropy, no hidden states. Masks and
normalisation are those of `train/losses`: the data's weights say where anything is learnt. The
teacher is frozen and runs beside the student, or has been run before (`teacher`). Both are in one
process; logits of more than 1,024 positions are never held.

Source: arXiv 2508.14444 section 4.3.
"""

import torch

from plait.compress.teacher import CHUNK_TOKENS, TaughtBatch
from plait.core.errors import ConfigError
from plait.data.loader import PackedBatch
from plait.kernels.kl_divergence import TopK, chunked_kl, chunked_topk_kl
from plait.model.lm import HybridLM
from plait.train.loop import LossFunction, LossOutput


def online_loss(teacher: HybridLM) -> LossFunction:
    """Return the loss against a teacher that reads every batch itself.

    The teacher's parameters are frozen; its dtype and device are its own affair.
    """
    teacher.requires_grad_(False)

    def loss(model: HybridLM, batch: PackedBatch) -> LossOutput:
        tokens, _, weights, cu_seqlens = (x.to(model.lm_head.weight.device) for x in batch)
        with torch.no_grad():
            expected = teacher.hidden(tokens, cu_seqlens=cu_seqlens)
        hidden = model.hidden(tokens, cu_seqlens=cu_seqlens)
        total = chunked_kl(
            hidden[0],
            model.lm_head.weight,
            expected[0],
            teacher.lm_head.weight,
            weights[0],
            CHUNK_TOKENS,
        )
        return LossOutput(total, weights.sum(), num_tokens=tokens.numel())

    return loss


def stored_loss(model: HybridLM, taught: TaughtBatch) -> LossOutput:
    """Return the loss against what a teacher said earlier: its likeliest tokens and their tail."""
    device = model.lm_head.weight.device
    tokens, _, weights, cu_seqlens = (x.to(device) for x in taught.batch)
    hidden = model.hidden(tokens, cu_seqlens=cu_seqlens)
    top = TopK(*(x.to(device) for x in taught.teacher))
    total = chunked_topk_kl(hidden[0], model.lm_head.weight, top, weights[0], CHUNK_TOKENS)
    return LossOutput(total, weights.sum(), num_tokens=tokens.numel())


def check_pair(teacher: HybridLM, student: HybridLM) -> None:
    """Check that two models predict the same tokens.

    Raises: ConfigError if their vocabularies differ.
    """
    theirs, ours = teacher.spec.vocab_size, student.spec.vocab_size
    if theirs != ours:
        raise ConfigError(
            f"the teacher predicts {theirs} tokens, the student {ours}: distillation compares "
            "them one by one, so both must have the same vocabulary"
        )
