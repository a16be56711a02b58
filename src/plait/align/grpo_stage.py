"""The stage `grpo`: reinforcement learning from verifiers, or from a reward model.

Reads `model`, JSONL files of prompts (`prompt, verifier, reference`), and optionally `reward`, a
reward model that judges instead of verifiers. Answers are sampled from the weights being trained,
with and without thinking, by the engine that serves them. Writes `model/`, `rollouts/` with what
was sampled, and scores on held-out prompts (`test_files`) into metrics.jsonl. A reward model is
exploited sooner or later: the reward goes on rising while what it stands for falls. `gold` shows
that and `choose_step` stops before it.

The report uses this for instruction following (rule verifier) and for human preference (reward
model; rollouts with and without a trace; section 3.2). It gives no sizes or rates.
"""

import json
import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from plait.align.grpo import PolicySettings, RolloutBatches, policy_loss
from plait.align.held_out import halves, held_out_scores
from plait.align.judge import judge_of, verifier_judge
from plait.align.prompts import check_apart, gather_prompts
from plait.align.records import Refusals, existing_files
from plait.align.rollout import Prompt, RolloutSettings
from plait.align.sampling import Judge, sample_groups
from plait.align.tune import (
    TuneSettings,
    load_for_tuning,
    on_one_process,
    training_metrics,
    tune,
    write_tuned,
)
from plait.align.verify import VerifierPool
from plait.core.artifact import write_json
from plait.core.errors import DataError
from plait.core.run_folder import model_directory
from plait.core.seed import mix_seed
from plait.data.tokenizer import Tokenizer
from plait.engine.engine import Engine
from plait.model.lm import HybridLM
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
    """Newest files of rollouts kept, and as many more as checkpoints need: a run stopped in
    mid-round goes on from one."""
    policy: PolicySettings = PolicySettings()
    """The objective."""
    gold: bool = False
    """With a reward model: let the prompts' verifiers score held-out answers too. That is what the
    reward stands for, and it falls where the reward is exploited."""
    choose_step: bool = False
    """True writes the model of the evaluated step that is best on half of the held-out prompts, by
    gold score if there is one; scores are reported on the other half. False writes the last."""

    @model_validator(mode="after")
    def _has_data(self) -> "GrpoSettings":
        if not self.generates and not self.files:
            raise ValueError("needs data: a list `files`, or a table of generated tasks")
        return self

    def files_read(self) -> list[Path]:
        """Return the user's files."""
        return existing_files([*self.files, *self.test_files])

    @property
    def rounds_kept(self) -> int:
        """Files of rollouts to keep, so that every kept checkpoint finds its own."""
        steps = self.keep_checkpoints * self.checkpoint_every_steps
        return max(self.keep_rounds, math.ceil(steps / self.steps_per_round) + 1)


def run(settings: GrpoSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Train `inputs["model"]` on its own rewarded answers and write the model to `out/model`.

    Raises: ConfigError for a file that does not exist or several processes; DataError if no prompt
    can be used; DivergedError if engine and trainer disagree.
    """
    source = inputs["model"]
    pool = VerifierPool(settings.verify_workers, settings.verify_timeout_s)
    with session(settings.num_threads), pool:
        on_one_process("the stage `grpo`")
        model = load_for_tuning(source, settings)
        tokenizer = Tokenizer.from_directory(model_directory(source))
        engine = settings.engine(model, tokenizer)
        refusals = Refusals(settings.strict)
        gather = partial(
            gather_prompts,
            settings=settings,
            seed=settings.seed,
            source=source,
            refusals=refusals,
            verified="reward" not in inputs or settings.gold,
        )
        prompts = gather("train", files=settings.files)
        tests = gather("test", files=settings.test_files)
        check_apart(prompts, tests)
        refusals.report(out / "data" / "refused.txt")
        if settings.choose_step and not all(halves(tests)):
            raise DataError(
                f"choose_step: {len(tests)} held-out prompts are too few to choose a step by one "
                "half and report the other; give more, or choose_step = false"
            )
        sampler = _Sampler(settings, engine, judge_of(inputs, pool), prompts)
        gold = verifier_judge(pool) if settings.gold else None
        examiner = _Examiner(settings, engine, sampler.judge, gold, tests, source, out)
        reference = None
        if settings.policy.kl_weight != 0:
            reference = set_precision(load_masters(source), settings.precision)
        batches = RolloutBatches(
            sampler.round,
            settings.policy,
            batches_per_round=settings.accumulation * settings.steps_per_round,
            fresh_batches=settings.accumulation,
            folder=out / "rollouts",
            keep_rounds=settings.rounds_kept,
            reference=reference,
        )
        loss = partial(policy_loss, settings=settings.policy)
        schedule = settings.schedule_of(settings.num_steps)
        evaluate = examiner.evaluate if tests else None
        result = tune(
            model, batches, loss, settings, schedule, "grpo", source, out, evaluate=evaluate
        )
    metrics = training_metrics(result) | {"prompts": float(len(prompts))}
    metrics["rows_refused"] = float(len(refusals.reasons))
    metrics |= largest_gap(out / "metrics.jsonl")
    chosen = result.position.step
    if settings.choose_step:
        chosen = examiner.restore_best()
        metrics["chosen_step"] = float(chosen)
        last = result.evaluations[result.position.step]
        metrics |= {f"last.{name}": value for name, value in last.items()}
    for when, step in (("before", 0), ("after", chosen)):
        scores = result.evaluations.get(step, {})
        metrics |= {f"{when}.{name}": value for name, value in scores.items()}
    return metrics


def largest_gap(file: Path) -> dict[str, float]:
    """Return, as `max_logprob_gap`, the largest difference between trainer and engine, in
    log-probabilities of sampled tokens, that any step of a run has recorded, if one has."""
    name = "max_logprob_gap"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    gaps = [step[name] for step in map(json.loads, lines) if name in step]
    return {name: max(gaps)} if gaps else {}


class _Sampler:
    """Draws rounds from the weights as they are."""

    def __init__(
        self, settings: GrpoSettings, engine: Engine, judge: Judge, prompts: Sequence[Prompt]
    ) -> None:
        self._settings, self._engine, self._prompts = settings, engine, prompts
        self.judge = judge

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
            self.judge,
            seed,
        )

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


class _Examiner:
    """Scores the weights as they are on held-out prompts, and keeps the best."""

    def __init__(
        self,
        settings: GrpoSettings,
        engine: Engine,
        judge: Judge,
        gold: Judge | None,
        tests: Sequence[Prompt],
        source: Path,
        out: Path,
    ) -> None:
        self._settings, self._source, self._out = settings, source, out
        self._best, self._best_score = out / "best", out / "best.json"
        self._score = partial(
            held_out_scores,
            engine,
            settings=settings,
            judge=judge,
            seed=mix_seed(settings.seed, "evaluate"),
            gold=gold,
        )
        self._chosen_by, self._reported = halves(tests) if settings.choose_step else ([], tests)

    def evaluate(self, model: HybridLM, step: int) -> dict[str, float]:
        """Return the scores of the reported prompts, and `choice`, by which steps are chosen."""
        scores = self._score(self._reported)
        if self._chosen_by:
            kind = "gold." if self._settings.gold else "reward."
            found = self._score(self._chosen_by)
            values = [value for name, value in found.items() if name.startswith(kind)]
            scores["choice"] = sum(values) / len(values)
            if step == 0 or scores["choice"] > self._known()["score"]:
                write_tuned(model, self._settings, self._source, self._best)
                write_json(self._best_score, {"step": step, "score": scores["choice"]})
        return scores

    def restore_best(self) -> int:
        """Put the best weights in the place of the last ones and return their step."""
        shutil.copytree(self._best, self._out / "model", dirs_exist_ok=True)
        return self._known()["step"]

    def _known(self) -> dict[str, Any]:
        return json.loads(self._best_score.read_text(encoding="utf-8"))
