"""The stage `pairs`: preferences of the current model's own answers, for on-policy DPO.

Reads `model`, JSONL files of prompts (`prompt, verifier, reference`), and optionally `reward`, a
reward model that judges instead of verifiers. Each prompt is answered `group_size` times; of a
group whose rewards differ, the best answer is chosen and the worst rejected (of equals, the
shortest best and the first worst), and further ones likewise if `pairs_per_prompt` says so. Where
tasks are worked on with tools (`workbench`), an answer is a whole attempt, and its reward says
whether the task was done.

Writes `pairs.jsonl`, which the stage `dpo` takes as its input `pairs`; with a table `rounds` that
stage makes its own pairs in this way, round after round.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator

from plait.align.grpo import check_judged
from plait.align.judge import judge_of
from plait.align.prompts import gather_prompts
from plait.align.records import Refusals, existing_files
from plait.align.rollout import Prompt, Rollout, RolloutSettings, write_groups
from plait.align.sampling import mean_reward, sample_groups
from plait.align.tune import PAIRS_FILE, on_one_process
from plait.align.verify import VerifierPool
from plait.core.artifact import write_atomic
from plait.core.errors import DataError
from plait.core.run_folder import model_directory
from plait.core.seed import mix_seed
from plait.data.tokenizer import Tokenizer
from plait.train.fit import load_masters, session

PositiveInt = Annotated[int, Field(gt=0)]


class NoPairsError(DataError):
    """Nothing to learn from: every prompt's answers are equally good."""


class PairsSettings(RolloutSettings):
    """Settings of the stage `pairs`; files hold prompts with verifier and reference."""

    files: tuple[str, ...] = ()
    """JSONL or parquet files of prompts."""
    strict: bool = False
    """True stops at the first row that cannot be used."""
    num_prompts: PositiveInt | None = None
    """How many prompts are asked, chosen by the seed; None asks all."""
    pairs_per_prompt: PositiveInt = 1
    """Most pairs made of a prompt's answers, each answer in one pair at most."""
    seed: int = 0
    """Of generated tasks, the choice of prompts and sampling; give each round its own."""
    num_threads: PositiveInt | None = None
    """Processor threads; None for torch's own choice."""

    @model_validator(mode="after")
    def _has_data(self) -> "PairsSettings":
        if not self.generates and not self.files:
            raise ValueError("needs data: a list `files`, or a table of generated tasks")
        return self

    def files_read(self) -> list[Path]:
        """Return the user's files."""
        return existing_files(self.files)


def run(settings: PairsSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Sample from `inputs["model"]` and write `out/pairs.jsonl`.

    Raises: ConfigError for a file that does not exist; DataError if no prompt can be used;
    NoPairsError if no group's rewards differ.
    """
    source = inputs["model"]
    pool = VerifierPool(settings.verify_workers, settings.verify_timeout_s)
    with session(settings.num_threads), pool, torch.no_grad():
        on_one_process("sampling of pairs")
        tokenizer = Tokenizer.from_directory(model_directory(source))
        engine = settings.engine(load_masters(source), tokenizer)
        refusals = Refusals(settings.strict)
        prompts = gather_prompts(
            "train",
            settings,
            settings.files,
            settings.seed,
            source,
            refusals,
            verified="reward" not in inputs,
        )
        refusals.report(out / "data" / "refused.txt")
        prompts.sort(key=lambda prompt: mix_seed(settings.seed, "choice", prompt.identity))
        prompts = prompts[: settings.num_prompts]
        groups = sample_groups(
            engine,
            prompts,
            settings.group_size,
            settings.sampling,
            partial(settings.thinks, settings.seed),
            judge_of(inputs, pool),
            mix_seed(settings.seed, "pairs"),
        )
    write_groups(out / "rollouts.jsonl", groups)
    check_judged(groups)
    asked = zip(prompts, groups, strict=True)
    most = settings.pairs_per_prompt
    pairs = [pair for prompt, group in asked for pair in pairs_of_group(prompt, group, most)]
    if not pairs:
        answers = [r for group in groups for r in group]
        cut_off = sum(r.finish_reason == "length" for r in answers)
        raise NoPairsError(
            f"none of {len(groups)} prompts has a better and a worse answer ({cut_off} of "
            f"{len(answers)} answers were cut off at max_tokens = {settings.max_tokens}); raise "
            "group_size or max_tokens, or ask harder or easier prompts"
        )
    lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs]
    write_atomic(out / PAIRS_FILE, "".join(lines))
    return {
        "pairs": float(len(pairs)),
        "prompts": float(len(prompts)),
        "reward": mean_reward(groups),
        "rows_refused": float(len(refusals.reasons)),
    }


def pairs_of_group(prompt: Prompt, group: Sequence[Rollout], most: int = 1) -> list[dict[str, Any]]:
    """Return preferences between the best and the worst answer, the second best and the second
    worst, and so on: at most so many, and none between answers that are equally good.

    Answers that ended at max_tokens are never chosen.
    """
    judged = [(r.reward, r) for r in group if r.reward is not None]
    whole = [(reward, r) for reward, r in judged if r.finish_reason != "length"]
    best_first = sorted(whole, key=lambda pair: (-pair[0], len(pair[1].token_ids)))
    worst_first = sorted(judged, key=lambda pair: pair[0])
    matches = list(zip(best_first, worst_first, strict=False))[:most]
    tools = {"tools": prompt.tools} if prompt.tools else {}
    return [
        {
            "prompt": prompt.messages,
            "chosen": chosen.turns,
            "rejected": rejected.turns,
            "chosen_reward": best,
            "rejected_reward": worst,
            **tools,
        }
        for (best, chosen), (worst, rejected) in matches
        if best > worst
    ]
