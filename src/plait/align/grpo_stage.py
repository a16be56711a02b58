"""The stage `grpo`: reinforcement learning from verifiers, or from a reward model.

Reads `model`, JSONL files of prompts (`prompt, verifier, reference`), and optionally `reward`, a
reward model that judges instead of verifiers. Answers are sampled from the weights being trained,
with and without thinking, by the engine that serves them. Writes `model/`, `rollouts/` with what
was sampled, and scores on held-out prompts (`test_files`) into metrics.jsonl.

The report uses this for instruction following (rule verifier) and for human preference (reward
model; rollouts with and without a trace; section 3.2). It gives no sizes or rates.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from plait.align.grpo import PolicySettings, RolloutBatches, policy_loss
from plait.align.judge import judge_of
from plait.align.records import Refusals, existing_files, read_records
from plait.align.rollout import (
    Judge,
    Prompt,
    RolloutSettings,
    build_prompts,
    sample_groups,
)
from plait.align.tune import TuneSettings, load_for_tuning, training_metrics, tune
from plait.align.verify import VerifierPool
from plait.core.errors import ConfigError
from plait.core.run_folder import model_directory
from plait.core.seed import mix_seed
from plait.data.tokenizer import Tokenizer
from plait.engine.engine import Engine
from plait.model.lm import HybridLM
from plait.train import parallel
from plait.train.fit import load_masters, session
from plait.train.precision import set_precision

PositiveInt = Annotated[int, Field(gt=0)]


class GrpoSettings(TuneSettings, RolloutSettings):
    """Settings of the stage `grpo`; files hold prompts with verifier and reference."""

    test_files: tuple[str, ...] = ()
    """Held-out prompts, answered at start, end and every `evaluate_every_steps`; those of
    generated tasks come on top."""
    num_steps: PositiveInt = 100
    """Optimizer steps."""
    prompts_per_batch: PositiveInt = 8
    """Prompts of a micro-batch; `accumulation` micro-batches make a step."""
    steps_per_round: PositiveInt = 1
    """Steps made from one round of sampling; 1 is on-policy."""
    keep_rounds: PositiveInt = 200
    """Newest files of rollouts kept; a run stopped in mid-round goes on from one."""
    policy: PolicySettings = PolicySettings()
    """The objective."""

    @model_validator(mode="after")
    def _has_data(self) -> "GrpoSettings":
        if not self.generates and not self.files:
            raise ValueError(
                "needs data: a list `files`, or a table `chains`, `instructions` or `tool_calls`"
            )
        return self

    def files_read(self) -> list[Path]:
        """Return the user's files."""
        return existing_files([*self.files, *self.test_files])


def run(settings: GrpoSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Train `inputs["model"]` on its own rewarded answers and write the model to `out/model`.

    Raises: ConfigError for a file that does not exist or several processes; DataError if no prompt
    can be used; DivergedError if engine and trainer disagree.
    """
    source = inputs["model"]
    pool = VerifierPool(settings.verify_workers, settings.verify_timeout_s)
    with session(settings.num_threads), pool:
        if parallel.num_processes() > 1:
            raise ConfigError("the stage `grpo` runs on one process; start it without torchrun")
        model = load_for_tuning(source, settings)
        tokenizer = Tokenizer.from_directory(model_directory(source))
        engine = settings.engine(model, tokenizer)
        verified = "reward" not in inputs
        judge = judge_of(inputs, pool)
        refusals = Refusals(settings.strict)
        prompts, tests = _prompts(settings, tokenizer, refusals, verified)
        refusals.report(out / "data" / "refused.txt")
        sampler = _Sampler(settings, engine, judge, prompts, tests)
        reference = None
        if settings.policy.kl_weight != 0:
            reference = set_precision(load_masters(source), settings.precision)
        batches = RolloutBatches(
            sampler.round,
            settings.policy,
            batches_per_round=settings.accumulation * settings.steps_per_round,
            fresh_batches=settings.accumulation,
            folder=out / "rollouts",
            keep_rounds=settings.keep_rounds,
            reference=reference,
        )
        loss = partial(policy_loss, settings=settings.policy)
        schedule = settings.schedule_of(settings.num_steps)
        evaluate = sampler.evaluate if tests else None
        result = tune(
            model, batches, loss, settings, schedule, "grpo", source, out, evaluate=evaluate
        )
    metrics = training_metrics(result) | {"prompts": float(len(prompts))}
    metrics["rows_refused"] = float(len(refusals.reasons))
    for when, step in (("before", 0), ("after", result.position.step)):
        scores = result.evaluations.get(step, {})
        metrics |= {f"{when}.{name}": value for name, value in scores.items()}
    return metrics


def _prompts(
    settings: GrpoSettings, tokenizer: Tokenizer, refusals: Refusals, verified: bool
) -> tuple[list[Prompt], list[Prompt]]:
    """Return the prompts to learn from and those held out."""
    seed = mix_seed(settings.seed, "tasks")
    records: list[Mapping[str, Any]] = [*read_records(settings.files, refusals)]
    tests: list[Mapping[str, Any]] = [*read_records(settings.test_files, refusals)]
    records += settings.train_questions(seed)
    tests += settings.held_out_questions(seed)
    limit = settings.max_prompt_tokens
    prompts = build_prompts(records, tokenizer, limit, refusals, verified)
    held_out = build_prompts(tests, tokenizer, limit, refusals, verified) if tests else []
    return prompts, held_out


class _Sampler:
    """Draws rounds and evaluations from the weights as they are."""

    def __init__(
        self,
        settings: GrpoSettings,
        engine: Engine,
        judge: Judge,
        prompts: Sequence[Prompt],
        tests: Sequence[Prompt],
    ) -> None:
        self._settings, self._engine, self._judge = settings, engine, judge
        self._prompts, self._tests = prompts, tests

    def round(self, number: int) -> list[list[Any]]:
        """Return the groups of a round: every prompt once before any comes again."""
        settings, seed = self._settings, mix_seed(self._settings.seed, "round", number)
        size = settings.accumulation * settings.steps_per_round * settings.prompts_per_batch
        chosen = self._prompts_from(number * size, size)

        return sample_groups(
            self._engine,
            chosen,
            settings.group_size,
            settings.sampling,
            partial(settings.thinks, seed),
            self._judge,
            seed,
        )

    def evaluate(self, model: HybridLM, step: int) -> dict[str, float]:
        """Return the mean reward of one answer to every held-out prompt, by way of asking."""
        share_thinking = self._settings.thinking_share
        shares = {"think": share_thinking, "no_think": 1 - share_thinking}
        scores: dict[str, float] = {}
        for name, share in shares.items():
            if share == 0:
                continue
            groups = sample_groups(
                self._engine,
                self._tests,
                1,
                self._settings.sampling,
                lambda _, on=name == "think": on,
                self._judge,
                mix_seed(self._settings.seed, "evaluate"),
            )
            values = [group[0].reward for group in groups]
            known = [value for value in values if value is not None]
            scores[f"reward.{name}"] = sum(known) / max(len(known), 1)
            lengths = [len(group[0].token_ids) for group in groups]
            scores[f"answer_tokens.{name}"] = sum(lengths) / len(lengths)
        return scores

    def _prompts_from(self, first: int, count: int) -> list[Prompt]:
        orders: dict[int, Any] = {}
        chosen = []
        for index in range(first, first + count):
            epoch, place = divmod(index, len(self._prompts))
            if epoch not in orders:
                seed = mix_seed(self._settings.seed, "prompts", epoch)
                generator = np.random.Generator(np.random.PCG64(seed))
                orders[epoch] = generator.permutation(len(self._prompts))
            chosen.append(self._prompts[orders[epoch][place]])
        return chosen
