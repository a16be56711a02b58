"""The stage `merge`: a linear merge of two models of one family, and the curve over alpha.

Reads `model` (alpha = 0) and `other` (alpha = 1). With one alpha it merges and is done. With
several, each is scored on the prompts of `files` (`prompt, verifier, reference`), the best is
written to `model/`, and `sweep.json` holds the curve.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from plait.align.judge import verifier_judge
from plait.align.merge import best, merge, sweep
from plait.align.records import Refusals, existing_files, read_records
from plait.align.rollout import Prompt, build_prompts, sample_groups
from plait.align.verify import VerifierPool
from plait.core.artifact import write_json
from plait.core.config import Settings
from plait.core.progress import track
from plait.core.run_folder import model_directory
from plait.data.tokenizer import Tokenizer
from plait.engine.engine import Engine
from plait.engine.request import SamplingParams
from plait.train.fit import session

PositiveInt = Annotated[int, Field(gt=0)]


class MergeSettings(Settings):
    """Settings of the stage `merge`."""

    alphas: Annotated[tuple[float, ...], Field(min_length=1)] = (0.5,)
    """Shares of `other`. The report sweeps 0.1 to 0.9 by 0.1 and chooses about 0.5."""
    files: tuple[str, ...] = ()
    """JSONL files of prompts that score each alpha; needed for several."""
    strict: bool = False
    """True stops at the first row that cannot be used."""
    thinking: bool = True
    """How the prompts are asked."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy."""
    max_tokens: PositiveInt = 512
    """Longest answer, trace included."""
    max_num_seqs: PositiveInt = 64
    """Answers generated at once."""
    verify_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """Longest a verifier may take for one answer."""
    seed: int = 0
    """Of sampling."""
    num_threads: PositiveInt | None = None
    """Processor threads; None for torch's own choice."""

    @model_validator(mode="after")
    def _check(self) -> "MergeSettings":
        for alpha in self.alphas:
            if not 0 <= alpha <= 1:
                raise ValueError(f"alphas must lie in 0..1, found {alpha}")
        if len(self.alphas) > 1 and not self.files:
            raise ValueError("several alphas need a list `files` of prompts to choose by")
        return self

    def files_read(self) -> list[Path]:
        """Return the user's files."""
        return existing_files(self.files)


def run(settings: MergeSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Merge `inputs["model"]` and `inputs["other"]` into `out/model`.

    Raises: CheckpointError if the two do not fit; DataError if no prompt can be used.
    """
    a, b, target = inputs["model"], inputs["other"], out / "model"
    if not settings.files:
        merge(a, b, settings.alphas[0], target)
        return {"alpha": settings.alphas[0]}
    pool = VerifierPool(timeout_s=settings.verify_timeout_s)
    with session(settings.num_threads), pool:
        tokenizer = Tokenizer.from_directory(model_directory(a))
        refusals = Refusals(settings.strict)
        records = read_records(settings.files, refusals)
        prompts = build_prompts(records, tokenizer, 2**31, refusals)
        refusals.report(out / "data" / "refused.txt")
        alphas = track(list(settings.alphas), "merge", unit="alphas")
        points = sweep(a, b, alphas, target, lambda path: _score(path, prompts, settings, pool))
        chosen = best(points)
        merge(a, b, chosen.alpha, target)
    write_json(out / "sweep.json", [point._asdict() for point in points])
    curve = {f"score.alpha_{point.alpha:g}": point.score for point in points}
    return {"alpha": chosen.alpha, "score": chosen.score, **curve}


def _score(
    directory: Path, prompts: list[Prompt], settings: MergeSettings, pool: VerifierPool
) -> float:
    engine = Engine.from_path(directory, max_num_seqs=settings.max_num_seqs)
    params = SamplingParams(max_tokens=settings.max_tokens, temperature=settings.temperature)
    groups = sample_groups(
        engine,
        prompts,
        1,
        params,
        lambda _: settings.thinking,
        verifier_judge(pool),
        settings.seed,
    )
    rewards = [group[0].reward or 0.0 for group in groups]
    return sum(rewards) / len(rewards)
