"""GRPO: rollouts to batches, and the loss of a batch.

A round asks some prompts, each `group_size` times; its groups are dealt out as micro-batches, one
packed row each. Rounds are written to `rollouts/round_*.jsonl`: that is what a user reads to see
what the model does, and what a run stopped in the middle of a round goes on from.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from plait.align.losses import Baseline, Level, group_advantages, policy_losses
from plait.align.preference import answer_logprobs
from plait.align.rollout import Rollout, read_groups, write_groups
from plait.core.config import Settings
from plait.core.errors import DataError
from plait.data.loader import PackedBatch
from plait.data.pack import Sample, pack
from plait.model.lm import HybridLM
from plait.train.loop import DivergedError, LossOutput

logger = logging.getLogger(__name__)

Groups = list[list[Rollout]]


class PolicySettings(Settings):
    """The objective. Defaults are those of DAPO and of TRL; the report gives none."""

    clip_low: float = 0.2
    """How far below 1 a ratio still counts."""
    clip_high: float = 0.2
    """How far above 1."""
    normalise: Level = "token"
    """What counts alike: tokens (DAPO), or answers (`sequence`, the original GRPO)."""
    importance: Level = "token"
    """Ratios of tokens, or of whole answers."""
    baseline: Baseline = "mean"
    """What an answer is compared with: its group's mean, or that of the others."""
    divide_by_std: bool = True
    """Divide advantages by the spread of their group."""
    kl_weight: float = 0.0
    """Weight of the divergence from the starting model; 0 keeps no second model."""
    skip_cut_off: bool = False
    """True learns nothing from answers that ended at max_tokens."""
    max_logprob_gap: float = 1e-3
    """Largest difference between the engine's and the trainer's log-probability of a sampled token;
    beyond it the run stops. For float32; bfloat16 needs more."""


class PolicyBatch(NamedTuple):
    """Some groups in one row."""

    packed: PackedBatch
    """Weight 1 on sampled tokens."""
    old_logprobs: Float[Tensor, " T"]
    """Of the sampled tokens, as the engine gave them."""
    advantages: Float[Tensor, " S"]
    learnt: Float[Tensor, " S"]
    """0 for answers that `skip_cut_off` leaves out, else 1."""
    reference: Float[Tensor, " T"] | None
    is_fresh: bool
    """True if no update was made since the answers were sampled."""
    figures: dict[str, float]


def policy_batch(groups: Groups, settings: PolicySettings, is_fresh: bool) -> PolicyBatch:
    """Pack groups of rollouts, with their advantages.

    An answer without a reward is in no group's mean and has advantage 0.
    Raises: DataError for a group without rollouts.
    """
    if not groups or not all(groups):
        raise DataError("a group has no rollouts, so there is nothing to compare")
    rollouts = [rollout for group in groups for rollout in group]
    rewards = torch.tensor([[r.reward or 0.0 for r in group] for group in groups])
    valid = torch.tensor(
        [
            [
                r.reward is not None and not (settings.skip_cut_off and r.finish_reason == "length")
                for r in group
            ]
            for group in groups
        ]
    )
    advantages = group_advantages(rewards, valid, settings.baseline, settings.divide_by_std)
    samples = [
        Sample(
            [*r.prompt_ids, *r.token_ids],
            [0.0] * len(r.prompt_ids) + [float(not forced) for forced in r.forced],
        )
        for r in rollouts
    ]
    learnt = torch.tensor(
        [float(not (settings.skip_cut_off and r.finish_reason == "length")) for r in rollouts]
    )
    old = [
        logprob
        for r in rollouts
        for logprob, forced in zip(r.logprobs, r.forced, strict=True)
        if not forced
    ]
    judged = [r.reward for r in rollouts if r.reward is not None]
    figures = {
        "reward": sum(judged) / len(judged) if judged else 0.0,
        "equal_groups": float((advantages == 0).all(1).double().mean()),
        "unjudged": 1 - len(judged) / len(rollouts),
        "cut_off": sum(r.finish_reason == "length" for r in rollouts) / len(rollouts),
        "answer_tokens": sum(len(r.token_ids) for r in rollouts) / len(rollouts),
    }
    return PolicyBatch(
        pack(samples), torch.tensor(old), advantages.flatten(), learnt, None, is_fresh, figures
    )


def policy_loss(model: HybridLM, batch: PolicyBatch, settings: PolicySettings) -> LossOutput:
    """Return the summed loss of a batch's sampled tokens, and the sum of what they weigh.

    Raises: DivergedError if trainer and engine disagree by more than `max_logprob_gap`.
    """
    answers = answer_logprobs(model, batch.packed)
    logprobs, device = answers.logprobs, answers.logprobs.device
    old = batch.old_logprobs.to(logprobs)
    figures: dict[str, Any] = dict(batch.figures)
    if batch.is_fresh:
        gap = float((logprobs.detach() - old).abs().max())
        figures["max_logprob_gap"] = gap
        if not gap <= settings.max_logprob_gap:
            raise DivergedError(
                f"engine and trainer differ by {gap:.2e} in the log-probability of a token they "
                f"both computed from the same weights (max_logprob_gap = "
                f"{settings.max_logprob_gap:g}): train in float32, or raise the limit"
            )
    losses = policy_losses(
        logprobs,
        old,
        batch.advantages.to(device)[answers.documents],
        batch.learnt.to(logprobs)[answers.documents],
        answers.documents,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        normalise=settings.normalise,
        importance=settings.importance,
        kl_weight=settings.kl_weight,
        reference_logprobs=None if batch.reference is None else batch.reference.to(logprobs),
    )
    figures["clipped"] = losses.clipped.double().mean()
    figures["kl"] = losses.kl.mean()
    num_tokens = batch.packed.tokens.numel()
    return LossOutput(losses.losses.sum(), losses.weights.sum().clamp_min(1), figures, num_tokens)


class RolloutBatches:
    """Endless micro-batches of rollouts; a new round is sampled when one is used up.

    `sample` makes the groups of a round from its number and the model as it then is.
    """

    def __init__(
        self,
        sample: Callable[[int], Groups],
        settings: PolicySettings,
        *,
        batches_per_round: int,
        fresh_batches: int,
        folder: Path,
        keep_rounds: int,
        reference: HybridLM | None = None,
    ) -> None:
        self._sample, self._settings, self._folder = sample, settings, folder
        self._batches_per_round, self._fresh_batches = batches_per_round, fresh_batches
        self._keep_rounds, self._reference = keep_rounds, reference
        self._round = self._index = 0
        self._groups: Groups | None = None
        self._warned = False

    def __next__(self) -> PolicyBatch:
        if self._index == self._batches_per_round:
            self._round, self._index, self._groups = self._round + 1, 0, None
        if self._groups is None:
            self._groups = self._new_round()
        size = len(self._groups) // self._batches_per_round
        groups = self._groups[self._index * size : (self._index + 1) * size]
        batch = policy_batch(groups, self._settings, self._index < self._fresh_batches)
        self._index += 1
        if self._reference is None:
            return batch
        with torch.no_grad():
            known = answer_logprobs(self._reference, batch.packed).logprobs
        return batch._replace(reference=known)

    def state(self) -> dict[str, Any]:
        """Return the place as JSON values."""
        return {"round": self._round, "index": self._index}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go to a place that `state` gave; the rest of a round begun is read from its file."""
        self._round, self._index = state["round"], state["index"]
        begun = 0 < self._index < self._batches_per_round
        self._groups = read_groups(self._file(self._round)) if begun else None

    def describe(self, state: dict[str, Any]) -> str:
        """Name the file in which the rollouts of a place are."""
        return str(self._file(state["round"]))

    def _new_round(self) -> Groups:
        groups = self._sample(self._round)
        write_groups(self._file(self._round), groups)
        self._file(self._round - self._keep_rounds).unlink(missing_ok=True)
        check_judged(groups)
        if not self._warned and all(len({r.reward for r in group}) == 1 for group in groups):
            self._warned = True
            logger.warning(
                "round %d: the answers to each prompt have equal rewards (%s), so there is nothing "
                "to learn; if that goes on, the prompts are too hard or too easy, or max_tokens "
                "cuts every answer off",
                self._round,
                groups[0][0].reward,
            )
        return groups

    def _file(self, number: int) -> Path:
        return self._folder / f"round_{number:06d}.jsonl"


def check_judged(groups: Sequence[Sequence[Rollout]]) -> None:
    """Warn about answers without a reward.

    Raises: DataError if none of several prompts' answers has one: then it is not a bad row.
    """
    unjudged = [r for group in groups for r in group if r.reward is None]
    if not unjudged:
        return
    first = f"{unjudged[0].prompt}: {unjudged[0].reason}"
    if len(groups) > 1 and len(unjudged) == sum(map(len, groups)):
        raise DataError(f"none of {len(unjudged)} answers could be judged; the first: {first}")
    logger.warning("%d answers could not be judged; the first: %s", len(unjudged), first)
