"""The stage `reward`: a model of which answers people prefer (Bradley-Terry).

Reads `model` and preferences from JSONL files, from an earlier stage `pairs`, or both; the share
`held_out_share` of the pairs is not learnt from but measures accuracy, margin and mean reward along
the way. Writes `model/` with its head (see `reward`), which `grpo` and `pairs` take as their input
`reward`.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator

from plait.align.letters import LetterSettings, preferences
from plait.align.preference import Pair, PairBatches, build_pairs, pack_pairs
from plait.align.records import Refusals, read_records
from plait.align.reward import RewardModel, pair_figures, reward_loss, save_reward_model
from plait.align.tune import EpochSettings, on_one_process, preference_files, training_metrics
from plait.core.run_folder import model_directory
from plait.core.seed import mix_seed
from plait.data.pack import first_fit
from plait.data.tokenizer import Tokenizer
from plait.train.fit import load_masters, session
from plait.train.loop import TrainSettings, train
from plait.train.precision import set_precision


class RewardSettings(EpochSettings):
    """Settings of the stage `reward`; files hold preferences."""

    letters: LetterSettings | None = None
    """Generated preferences between letters."""
    held_out_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of pairs kept for measuring; which ones depends on seed and row alone."""

    @model_validator(mode="after")
    def _check(self) -> "RewardSettings":
        if self.lora is not None:
            raise ValueError("lora: a reward model trains all weights; leave `lora` out")
        return self

    def lacks(self, roles: Collection[str]) -> str | None:
        """Ask for data."""
        if self.files or self.letters or "pairs" in roles:
            return None
        return (
            "needs data: a list `files`, a table `letters`, or an earlier stage as the input "
            "`pairs`"
        )


def run(settings: RewardSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Train a reward model from `inputs["model"]` and write it to `out/model`.

    Raises: ConfigError for a file that does not exist or several processes; DataError if no row can
    be used.
    """
    source = inputs["model"]
    with session(settings.num_threads):
        on_one_process("the stage `reward`")
        model = RewardModel(set_precision(load_masters(source), settings.precision))
        tokenizer = Tokenizer.from_directory(model_directory(source))
        refusals = Refusals(settings.strict)
        records: list[Mapping[str, Any]] = []
        records += read_records(preference_files(settings.files, inputs), refusals)
        if settings.letters is not None:
            records += preferences(settings.letters, mix_seed(settings.seed, "tasks"))
        data = build_pairs(records, tokenizer, settings.tokens_per_batch, refusals)
        refusals.report(out / "data" / "refused.txt")
        learnt, held_out = split_pairs(data.pairs, settings.held_out_share, settings.seed)
        batches = PairBatches(learnt, settings.tokens_per_batch, settings.seed)
        schedule = settings.schedule(batches.num_batches)

        def evaluate(model: RewardModel, step: int) -> dict[str, float]:
            return score_pairs(model, held_out, settings.tokens_per_batch)

        plan = TrainSettings.of(settings, schedule, "reward")
        result = train(model, batches, reward_loss, plan, out, evaluate=evaluate)
        save_reward_model(model, out / "model", model_directory(source))
    last = result.evaluations[result.position.step]
    return (
        training_metrics(result)
        | {f"held_out.{name}": value for name, value in last.items()}
        | {
            "pairs": float(len(learnt)),
            "pairs_held_out": float(len(held_out)),
            "pairs_too_long": float(data.num_too_long),
            "rows_refused": float(len(refusals.reasons)),
        }
    )


def split_pairs(pairs: list[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs to learn from and those held out; prompts are not shared between them."""
    learnt: list[Pair] = []
    held_out: list[Pair] = []
    for pair in pairs:
        draw = mix_seed(seed, "held out", ",".join(map(str, pair.prompt_ids))) / 2**63
        (held_out if draw < share else learnt).append(pair)
    return (learnt, held_out) if learnt else (held_out, [])


@torch.no_grad()
def score_pairs(model: RewardModel, pairs: list[Pair], tokens_per_batch: int) -> dict[str, float]:
    """Return accuracy, margin and mean reward on some pairs; nothing if there are none."""
    if not pairs:
        return {}
    scores = []
    for group in first_fit((pair.num_tokens for pair in pairs), tokens_per_batch):
        scores.append(model(pack_pairs([pairs[index] for index in group])).view(-1, 2))
    chosen, rejected = torch.cat(scores).unbind(1)
    return {name: float(value) for name, value in pair_figures(chosen, rejected).items()}
