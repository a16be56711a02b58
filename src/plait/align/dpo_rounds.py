"""On-policy DPO in rounds: sample from the current model, pair, learn, and again.

    model -> attempts -> pairs -> DPO -> model -> attempts -> pairs -> DPO -> ...

So the report tunes tool use (section 3.2): positives and negatives of each round come from the
checkpoint before it. Each round's reference is the model that made its pairs. What is done lies in
`pairs_N/` and `round_N/`; a run that is started again goes on from there. A round whose prompts all
have equally good answers teaches nothing, says so and leaves the model as it is.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from plait.align import pairs_stage
from plait.align.held_out import held_out_scores
from plait.align.judge import judge_of
from plait.align.pairs_stage import NoPairsError, PairsSettings
from plait.align.prompts import check_apart, gather_prompts
from plait.align.records import Refusals, existing_files
from plait.align.rollout import read_groups
from plait.align.sampling import mean_reward
from plait.align.verify import VerifierPool
from plait.core.artifact import atomic_directory, write_json
from plait.core.run_folder import model_directory
from plait.core.seed import mix_seed
from plait.data.tokenizer import Tokenizer
from plait.train.fit import load_masters

logger = logging.getLogger(__name__)

Learn = Callable[[Mapping[str, Path], Path], dict[str, float]]
"""Tune `inputs["model"]` on `inputs["pairs"]` into a folder; returns its metrics."""


class RoundsSettings(PairsSettings):
    """What each round asks, and how often."""

    num_rounds: Annotated[int, Field(gt=0)] = 2
    """Rounds; each asks other prompts, or the same ones with other seeds."""
    test_files: tuple[str, ...] = ()
    """Held-out prompts, answered before the first round and after each; those of generated tasks
    come on top."""

    def files_read(self) -> list[Path]:
        """Return the user's files."""
        return existing_files([*self.files, *self.test_files])

    def pairs(self, number: int) -> PairsSettings:
        """Return the settings by which round `number` makes its pairs."""
        return self.model_copy(update={"seed": mix_seed(self.seed, "round", number)})


def run_rounds(
    settings: RoundsSettings, inputs: Mapping[str, Path], out: Path, learn: Learn
) -> dict[str, float]:
    """Alternate pairs and learning; the last round's model is `out/model`.

    Returns the last round's metrics and, by round (0 is the start), scores on held-out prompts,
    pairs made and mean reward of what was sampled.
    """
    model, figures = inputs["model"], _scores(settings, inputs, out, 0)
    metrics: dict[str, float] = {}
    for number in range(1, settings.num_rounds + 1):
        pairs = out / f"pairs_{number}"
        learnt = out if number == settings.num_rounds else out / f"round_{number}"
        made = _pairs(settings.pairs(number), {**inputs, "model": model}, pairs)
        figures |= {f"round_{number}.{name}": made[name] for name in ("pairs", "reward")}
        if learnt == out or not (learnt / "model").exists():
            if made["pairs"]:
                metrics = learn({"model": model, "pairs": pairs}, learnt)
            else:
                _keep(model, learnt)
        model = learnt
        figures |= _scores(settings, {**inputs, "model": model}, out, number)
    return metrics | figures


def _pairs(settings: PairsSettings, inputs: Mapping[str, Path], out: Path) -> dict[str, float]:
    """Make the pairs of a round unless they are there; return what was counted."""
    file = out / "made.json"
    if not file.exists():
        try:
            made = pairs_stage.run(settings, {**inputs}, out)
        except NoPairsError as error:
            logger.warning("%s: %s", out.name, error)
            made = {"pairs": 0.0, "reward": mean_reward(read_groups(out / "rollouts.jsonl"))}
        write_json(file, made)
    return json.loads(file.read_text(encoding="utf-8"))


def _keep(model: Path, learnt: Path) -> None:
    with atomic_directory(learnt / "model") as partial:
        shutil.copytree(model_directory(model), partial, dirs_exist_ok=True)


@torch.no_grad()
def _scores(
    settings: RoundsSettings, inputs: Mapping[str, Path], out: Path, number: int
) -> dict[str, float]:
    """Return the held-out scores after a round, from their file if they are known."""
    file = out / f"held_out_{number}.json"
    if not file.exists():
        source = inputs["model"]
        tokenizer = Tokenizer.from_directory(model_directory(source))
        gather = partial(
            gather_prompts,
            settings=settings,
            seed=settings.seed,
            source=source,
            refusals=Refusals(settings.strict),
            verified="reward" not in inputs,
        )
        tests = gather("test", files=settings.test_files)
        check_apart(gather("train", files=settings.files), tests)
        engine = settings.engine(load_masters(source), tokenizer)
        with VerifierPool(settings.verify_workers, settings.verify_timeout_s) as pool:
            judge = judge_of(inputs, pool)
            write_json(file, held_out_scores(engine, tests, settings, judge, settings.seed))
    scores = json.loads(file.read_text(encoding="utf-8"))
    return {f"held_out.{name}.round_{number}": value for name, value in scores.items()}
