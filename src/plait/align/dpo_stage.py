"""The stage `dpo`: learn from pairs which of two answers is preferred, without a reward model.

Reads `model` and preferences (`prompt, chosen, rejected`) from JSONL files, from an earlier stage
`pairs`, or both; or, with `rounds`, samples them itself, anew in each round. The reference is the
model as it came in: what it says of every answer is computed once before training, so no second
model stays in memory. Writes `model/` and `data/refused.txt` if rows were refused.

The report tunes tool use this way, on pairs of the current model's own successes and failures
(section 3.2); it gives neither beta nor rates, so the defaults are those of public recipes.
"""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, model_validator

from plait.align.dpo_rounds import RoundsSettings, run_rounds
from plait.align.losses import dpo_losses
from plait.align.preference import (
    PairBatch,
    PairBatches,
    answer_logprobs,
    build_pairs,
    reference_logprobs,
)
from plait.align.records import Refusals, read_records
from plait.align.tune import (
    EpochSettings,
    load_for_tuning,
    on_one_process,
    preference_files,
    training_metrics,
    tune,
)
from plait.core.run_folder import model_directory
from plait.data.tokenizer import Tokenizer
from plait.model.lm import HybridLM
from plait.train.fit import session
from plait.train.loop import LossOutput


class DpoSettings(EpochSettings):
    """Settings of the stage `dpo`; files hold preferences."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """How strongly a pair may pull away from the reference; smaller pulls further."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of an additional loss: negative log-likelihood of the chosen answer, per token."""
    rounds: RoundsSettings | None = None
    """Pairs that each round samples from the model as it then is; see `dpo_rounds`. None learns
    from given pairs once."""

    @model_validator(mode="after")
    def _one_source(self) -> "DpoSettings":
        if self.rounds is not None and self.files:
            raise ValueError(
                "rounds: make their own pairs; leave `files` out, or put prompts into rounds.files"
            )
        return self

    def lacks(self, roles: Collection[str]) -> str | None:
        """Ask for data."""
        if self.files or self.rounds or "pairs" in roles:
            return None
        return (
            "needs data: a list `files`, a table `rounds`, or an earlier stage as the input `pairs`"
        )

    def files_read(self) -> list[Path]:
        """Return the user's files."""
        own = self.rounds.files_read() if self.rounds else []
        return super().files_read() + own


def run(settings: DpoSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Tune `inputs["model"]` on preferences and write the model to `out/model`.

    Raises: ConfigError for a file that does not exist; DataError if no row can be used.
    """
    with session(settings.num_threads):
        if settings.rounds is None:
            return learn_pairs(settings, inputs, out)
        on_one_process("dpo with rounds")
        return run_rounds(settings.rounds, inputs, out, partial(learn_pairs, settings))


def learn_pairs(settings: DpoSettings, inputs: Mapping[str, Path], out: Path) -> dict[str, float]:
    """Tune on given preferences once."""
    source = inputs["model"]
    model = load_for_tuning(source, settings)
    tokenizer = Tokenizer.from_directory(model_directory(source))
    refusals = Refusals(settings.strict)
    records = read_records(preference_files(settings.files, inputs), refusals)
    data = build_pairs(records, tokenizer, settings.tokens_per_batch, refusals)
    refusals.report(out / "data" / "refused.txt")
    reference = reference_logprobs(model, data.pairs, settings.tokens_per_batch)
    batches = PairBatches(data.pairs, settings.tokens_per_batch, settings.seed, reference)
    loss = partial(dpo_loss, beta=settings.beta, sft_weight=settings.sft_weight)
    schedule = settings.schedule(batches.num_batches)
    result = tune(model, batches, loss, settings, schedule, "dpo", source, out)
    return training_metrics(result) | {
        "pairs": float(len(data.pairs)),
        "pairs_too_long": float(data.num_too_long),
        "rows_refused": float(len(refusals.reasons)),
    }


def dpo_loss(model: HybridLM, batch: PairBatch, beta: float, sft_weight: float = 0.0) -> LossOutput:
    """Return the DPO loss summed over the pairs of a batch; each pair weighs 1.

    The optional SFT term is the mean negative log-likelihood of the batch's chosen tokens, as often
    as there are pairs.
    """
    assert batch.reference is not None
    answers = answer_logprobs(model, batch.packed)
    chosen, rejected = answers.sums.view(-1, 2).unbind(1)
    known = batch.reference.to(chosen.device, chosen.dtype)
    losses, chosen_rewards, rejected_rewards = dpo_losses(
        chosen, rejected, known[:, 0], known[:, 1], beta
    )
    total = losses.sum()
    if sft_weight > 0:
        total = total - sft_weight * len(chosen) * chosen.sum() / answers.counts[::2].sum()
    margin = chosen_rewards - rejected_rewards
    metrics = {
        "accuracy": (margin > 0).double().mean(),
        "margin": margin.mean(),
        "chosen_reward": chosen_rewards.mean(),
        "rejected_reward": rejected_rewards.mean(),
    }
    metrics = {name: torch.as_tensor(value).detach() for name, value in metrics.items()}
    return LossOutput(total, len(chosen), metrics, batch.packed.tokens.numel())
