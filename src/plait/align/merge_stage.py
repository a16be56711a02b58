"""The stage `merge`: a linear merge of two models of one family, and the curve over alpha.

Reads `model` (alpha = 0) and `other` (alpha = 1). With one alpha and no tasks it merges and is
done. With tasks, both parents and every alpha answer their held-out prompts. Half of the prompts
choose the alpha that keeps most of the better parent's score where it keeps least; the figures that
are reported come from the other half. The chosen model is written to `model/`, and `sweep.json`
holds the curve.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, model_validator

from plait.align.held_out import halves, held_out_scores
from plait.align.judge import verifier_judge
from plait.align.merge import Scores, SweepPoint, best, kept, merge, sweep
from plait.align.prompts import gather_prompts
from plait.align.records import Refusals, existing_files
from plait.align.rollout import AskSettings, Prompt
from plait.align.tune import on_one_process
from plait.align.verify import VerifierPool
from plait.core.artifact import write_json
from plait.core.config import Settings
from plait.core.errors import DataError
from plait.core.progress import track
from plait.core.run_folder import model_directory
from plait.core.seed import mix_seed
from plait.data.tokenizer import Tokenizer
from plait.model.hf import load
from plait.train import parallel
from plait.train.fit import session

PositiveInt = Annotated[int, Field(gt=0)]


class MergeTask(AskSettings):
    """Prompts that say what a merge is worth."""

    files: tuple[str, ...] = ()
    """JSONL or parquet files of prompts with verifier and reference; held-out prompts of generated
    tasks come on top."""
    thinking_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """1 asks with thinking on, 0 off, anything between both ways; their scores are averaged."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy."""

    @model_validator(mode="after")
    def _has_data(self) -> "MergeTask":
        if not self.generates and not self.files:
            raise ValueError("needs data: a list `files`, or a table of generated tasks")
        return self


class MergeSettings(Settings):
    """Settings of the stage `merge`."""

    alphas: Annotated[tuple[float, ...], Field(min_length=1)] = (0.5,)
    """Shares of `other`. The report sweeps 0.1 to 0.9 by 0.1 and chooses about 0.5."""
    tasks: dict[str, MergeTask] = {}  # noqa: RUF012
    """What both parents are good at, by name; needed to choose among several alphas."""
    strict: bool = False
    """True stops at the first row that cannot be used."""
    seed: int = 0
    """Of generated tasks and sampling."""
    num_threads: PositiveInt | None = None
    """Processor threads; None for torch's own choice."""

    @model_validator(mode="after")
    def _check(self) -> "MergeSettings":
        for alpha in self.alphas:
            if not 0 <= alpha <= 1:
                raise ValueError(f"alphas must lie in 0..1, found {alpha}")
        if len(self.alphas) > 1 and not self.tasks:
            raise ValueError("several alphas need a table `tasks` of prompts to choose by")
        return self

    def files_read(self) -> list[Path]:
        """Return the user's files."""
        return existing_files(name for task in self.tasks.values() for name in task.files)


def run(settings: MergeSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Merge `inputs["model"]` and `inputs["other"]` into `out/model`.

    Raises: CheckpointError if the two do not fit; DataError if a task has no prompts to choose by
    or to report.
    """
    a, b, target = inputs["model"], inputs["other"], out / "model"
    if not settings.tasks:
        merge(a, b, settings.alphas[0], target)
        return {"alpha": settings.alphas[0]}
    with session(settings.num_threads), ExitStack() as pools:
        on_one_process("the stage `merge`")
        refusals = Refusals(settings.strict)
        exam = _Exam(settings, a, refusals, pools)
        refusals.report(out / "data" / "refused.txt")
        alphas = sorted({0.0, *settings.alphas, 1.0})
        shown = track(alphas, "merge", unit="alphas")
        points = sweep(a, b, shown, target, exam.scores)
    # scores are named "choice.TASK" and "reported.TASK"
    choice, reported = (_only(points, which) for which in ("choice.", "reported."))
    allowed = [point for point in choice if point.alpha in settings.alphas]
    alpha = best(allowed, _parents(choice)).alpha
    merge(a, b, alpha, target)
    shares = {p.alpha: kept(p.scores, _parents(reported)) for p in reported}
    curve = [{**point._asdict(), "kept": shares[point.alpha]} for point in reported]
    write_json(out / "sweep.json", {"chosen": alpha, "points": curve})
    return {
        "alpha": alpha,
        "kept": shares[alpha],
        **{f"kept.alpha_{each:g}": share for each, share in shares.items()},
        **{
            f"score.{name}.alpha_{point.alpha:g}": score
            for point in reported
            for name, score in point.scores.items()
        },
    }


class _Exam:
    """Scores a model on all tasks."""

    def __init__(
        self, settings: MergeSettings, source: Path, refusals: Refusals, pools: ExitStack
    ) -> None:
        self._settings = settings
        self._tokenizer = Tokenizer.from_directory(model_directory(source))
        self._prompts: dict[str, tuple[list[Prompt], list[Prompt]]] = {}
        for name, task in settings.tasks.items():
            seed = mix_seed(settings.seed, name)
            prompts = gather_prompts("test", task, task.files, seed, source, refusals)
            self._prompts[name] = halves(prompts)
            if not all(self._prompts[name]):
                raise DataError(
                    f"tasks.{name}: {len(prompts)} prompts are too few to choose an alpha by one "
                    f"half and report the other; {len(refusals.reasons)} rows refused"
                )
        # Workers that serve the whole sweep: starting one takes longer than its grading.
        self._judges = {
            name: verifier_judge(
                pools.enter_context(VerifierPool(task.verify_workers, task.verify_timeout_s))
            )
            for name, task in settings.tasks.items()
        }

    @torch.no_grad()
    def scores(self, directory: Path) -> Scores:
        """Return what a model directory scores on both halves of each task."""
        model = load(directory, dtype=torch.float32, device=parallel.device())
        scores: Scores = {}
        for name, task in self._settings.tasks.items():
            engine = task.engine(model, self._tokenizer)
            params = task.sampling.model_copy(update={"temperature": task.temperature})
            judge = self._judges[name]
            for which, prompts in zip(("choice", "reported"), self._prompts[name], strict=True):
                found = held_out_scores(
                    engine, prompts, task, judge, self._settings.seed, params=params
                )
                values = [v for key, v in found.items() if key.startswith("reward.")]
                scores[f"{which}.{name}"] = sum(values) / len(values)
        return scores


def _only(points: list[SweepPoint], which: str) -> list[SweepPoint]:
    return [
        SweepPoint(
            alpha,
            {n.removeprefix(which): v for n, v in scores.items() if n.startswith(which)},
        )
        for alpha, scores in points
    ]


def _parents(points: list[SweepPoint]) -> list[Scores]:
    return [point.scores for point in points if point.alpha in (0.0, 1.0)]
