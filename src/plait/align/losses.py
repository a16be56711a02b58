"""The losses of alignment, as pure functions of log-probabilities, scores and masks.

    reward      -log sigmoid(s_chosen - s_rejected)                                Bradley-Terry
    DPO         -log sigmoid(beta (c - r)),  c, r = log p - log p_reference of either side, summed
    GRPO        -min(w A, clip(w, 1 - low, 1 + high) A) + kl w (e^d - d - 1)
                w = p / p_old of a token (or the geometric mean of its answer's),
                d = log p_reference - log p,  A = (R - mean of the group) / (its std + 1e-4)

None of them sees a model, and none averages: the caller hands the sum and its weight to the loop,
which divides by the weight of the whole step. Tests hold each against TRL on TRL's own batches.

Sources: arXiv 2305.18290 (DPO), 2402.03300 (GRPO, the k3 estimate of the KL divergence), 2512.02556
(that estimate times w, whose gradient is unbiased), 2503.14476 (DAPO: two clip ranges, token-level
mean), 2507.18071 (weights of whole sequences); defaults and names as in TRL.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Baseline = Literal["mean", "leave_one_out"]
Level = Literal["token", "sequence"]

STD_OFFSET = 1e-4


def reward_losses(
    chosen: Float[Tensor, " N"], rejected: Float[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Return the Bradley-Terry loss of each pair of scores; ln 2 where they are equal."""
    return -F.logsigmoid(chosen - rejected)


class DpoLosses(NamedTuple):
    """Losses of pairs and the implicit rewards beta (log p - log p_reference) of their sides."""

    losses: Float[Tensor, " N"]
    chosen_rewards: Float[Tensor, " N"]
    rejected_rewards: Float[Tensor, " N"]


def dpo_losses(
    chosen: Float[Tensor, " N"],
    rejected: Float[Tensor, " N"],
    reference_chosen: Float[Tensor, " N"],
    reference_rejected: Float[Tensor, " N"],
    beta: float,
) -> DpoLosses:
    """Return the DPO loss of each pair from log-probabilities summed over each side's answer.

    Equals ln 2 where policy and reference agree.
    """
    for_chosen = chosen - reference_chosen
    for_rejected = rejected - reference_rejected
    losses = -F.logsigmoid(beta * (for_chosen - for_rejected))
    return DpoLosses(losses, beta * for_chosen.detach(), beta * for_rejected.detach())


def group_advantages(
    rewards: Float[Tensor, "G K"],
    valid: Bool[Tensor, "G K"],
    baseline: Baseline = "mean",
    divide_by_std: bool = True,
) -> Float[Tensor, "G K"]:
    """Return how much better each of a prompt's K answers is than its group.

    `valid` marks answers that have a reward; others count for nothing and get 0, and so does a
    group with fewer than two that have one. leave_one_out: the mean of the others. The standard
    deviation is over the group with n - 1, plus 1e-4 as in TRL. Equal rewards give exactly 0.
    """
    count = valid.sum(1, keepdim=True)
    known = rewards.where(valid, torch.zeros_like(rewards))
    mean = known.sum(1, keepdim=True) / count.clamp_min(1)
    difference = known - mean
    difference = difference.where(valid & (count > 1), torch.zeros_like(difference))
    # rounding of the mean must not become a signal once it is divided by a spread of nothing
    low = rewards.masked_fill(~valid, float("inf")).amin(1, keepdim=True)
    high = rewards.masked_fill(~valid, -float("inf")).amax(1, keepdim=True)
    difference = difference.where(high > low, torch.zeros_like(difference))
    advantages = difference
    if baseline == "leave_one_out":
        advantages = difference * count / (count - 1).clamp_min(1)
    if divide_by_std:
        std = (difference.square().sum(1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()
        advantages = advantages / (std + STD_OFFSET)
    return advantages


class PolicyLosses(NamedTuple):
    """Losses of tokens, and what happened in them."""

    losses: Float[Tensor, " T"]
    """Already weighted by the mask; add them up."""
    weights: Float[Tensor, " T"]
    """What each token counts; their sum is what the sum of losses is divided by."""
    clipped: Bool[Tensor, " T"]
    """Tokens whose gradient the clip cut off."""
    kl: Float[Tensor, " T"]
    """k3 estimate of the divergence from the reference; 0 without one."""


def policy_losses(
    logprobs: Float[Tensor, " T"],
    old_logprobs: Float[Tensor, " T"],
    advantages: Float[Tensor, " T"],
    mask: Float[Tensor, " T"],
    sequences: Int[Tensor, " T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    normalise: Level = "token",
    importance: Level = "token",
    kl_weight: float = 0.0,
    reference_logprobs: Float[Tensor, " T"] | None = None,
) -> PolicyLosses:
    """Return the clipped policy-gradient loss of each token of some answers.

    mask is 1 for tokens the model chose, 0 for prompts, forced tokens and tool responses;
    `sequences` says which answer a token belongs to. normalise: `token` counts every token
    alike (DAPO), `sequence` every answer (the original GRPO). importance: ratios per token, or of
    whole answers (GSPO).
    Raises: ValueError if kl_weight is not 0 and there is no reference.
    """
    num_sequences = int(sequences.max()) + 1 if len(sequences) else 0
    lengths = _sum_by(mask, sequences, num_sequences).clamp_min(1)
    ignored = mask == 0  # whatever stands there, an infinite ratio included, must not spread
    log_ratio = (logprobs - old_logprobs).masked_fill(ignored, 0.0)
    if importance == "sequence":
        log_ratio = (_sum_by(log_ratio * mask, sequences, num_sequences) / lengths)[sequences]
    ratio = log_ratio.exp()
    clipped_ratio = ratio.clamp(1 - clip_low, 1 + clip_high)
    losses = -torch.minimum(ratio * advantages, clipped_ratio * advantages)
    kl = torch.zeros_like(losses)
    if kl_weight != 0:
        if reference_logprobs is None:
            raise ValueError(f"kl_weight is {kl_weight}, which needs reference_logprobs")
        further = (reference_logprobs - logprobs).masked_fill(ignored, 0.0)
        kl = further.exp() - further - 1
        losses = losses + kl_weight * ratio * kl
    weights = mask if normalise == "token" else mask / lengths[sequences]
    cut = (clipped_ratio * advantages < ratio * advantages) & (mask > 0)
    return PolicyLosses(losses * weights, weights, cut, kl.detach() * mask)


def _sum_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    return values.new_zeros(size).index_add(0, index, values)
