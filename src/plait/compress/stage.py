"""The stage `compress`: a parent and a budget in, the child that keeps most of it out.

    score      importance of every part, forward passes on calibration text         scores/
    enumerate  every child that fits, without weights                               candidates.json
    rank       KL(parent || child) on held-out text of those on the edge of the budget, cut a
               layer at a time: no model is written to be ranked, none is in memory whole
    heal       the best few, each better than the others in KL or in speed, are distilled briefly;
               the first step that needs the parent in memory
    choose     the least KL then; cut from the parent as it was and written         model/

Reads `model` and text (`conversations`, and `documents` or a `blend`, as `distill`). Long steps
leave their results in the folder, so that an interrupted run goes on; the parent is only read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator

from plait.compress.distill_stage import TextSource
from plait.compress.healing import Healing, heal
from plait.compress.importance import ScoreSettings, score
from plait.compress.memory import Workload, memory
from plait.compress.prune import prune_directory
from plait.compress.ranking import Ranked, StreamedYardstick, pareto, rank
from plait.compress.scores import Scores
from plait.compress.search import Candidate, Grid, Ranges, candidates, edge, stand_in_depths
from plait.compress.throughput import Hardware, throughput
from plait.core.artifact import write_json
from plait.core.config import Settings
from plait.core.errors import DataError
from plait.core.run_folder import model_directory
from plait.core.seed import mix_seed
from plait.core.sizes import parse_bytes
from plait.data.loader import PackedBatch
from plait.model.hf import load
from plait.model.hf_config import read_spec
from plait.model.hf_stream import ModelDirectory
from plait.model.spec import ModelSpec
from plait.train import parallel
from plait.train.fit import session
from plait.train.loop import Batches

PositiveInt = Annotated[int, Field(gt=0)]

CANDIDATES_FILE = "candidates.json"


class CompressSettings(Settings):
    """Settings of the stage `compress`."""

    memory: str
    """The budget, as 19.66GiB."""
    workload: Workload = Workload()
    """What must fit."""
    ranges: Ranges = Ranges()
    """What a child may look like."""
    hardware: Hardware = Hardware()
    """What its speed is estimated for."""
    calibration_rows: PositiveInt = 1024
    """Rows of text on which importance is measured."""
    row_tokens: PositiveInt = 1024
    """Tokens of each. Our choice; nothing to do with the context that is budgeted."""
    held_out_rows: PositiveInt = 32
    """Rows on which candidates are compared with the parent."""
    score: ScoreSettings = ScoreSettings.model_validate({})
    """How importance is measured; how many layers to remove follows from the ranges."""
    importance: Literal["measured", "random"] = "measured"
    """Random keeps as much, but no matter what: what the scores are worth."""
    conversation_share: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Share of rows made of conversations, where there is a blend too."""
    max_ranked: PositiveInt = 64
    """Candidates compared with the parent: evenly spaced among those on the edge."""
    top_k: PositiveInt = 3
    """Candidates that are healed."""
    healing: Healing = Healing()
    """How."""
    seed: int = 0
    """Of the order of text and of random importance."""
    num_threads: PositiveInt | None = None
    """Processor threads; None for torch's own choice."""

    @field_validator("memory")
    @classmethod
    def _is_a_size(cls, memory: str) -> str:
        parse_bytes(memory)
        return memory


def compress(
    settings: CompressSettings, inputs: dict[str, Path], out: Path, source: TextSource
) -> dict[str, float]:
    """Search for the best child of `inputs["model"]` in a budget and write it to `out/model`.

    Raises: ConfigError if no allowed child fits or the device is not there; DataError if there is
    too little text; CheckpointError for a parent that is incomplete.
    """
    settings.score.check_device()
    directory = model_directory(inputs["model"])
    parent_spec = read_spec(directory)
    grid = Grid.of(settings.ranges, parent_spec)
    _check_budget(settings, grid, parent_spec)
    with session(settings.num_threads):
        text = _text(settings, source)
        scores = _scores(settings, grid, directory, text, out / "scores")
        found, on_edge = _candidates(settings, grid, parent_spec, scores)
        held_out = [_next(text) for _ in range(settings.held_out_rows)]
        ranked = _ranked(settings, directory, on_edge, scores, held_out, out / "checkpoints")
        finalists, healing = pareto(ranked)[: settings.top_k], settings.healing
        if len(finalists) > 1 and healing.num_steps > 0:
            whole = load(directory, device=parallel.device())
            finalists = heal(whole, scores, finalists, held_out, healing, text, out / "checkpoints")
    best = min(finalists, key=lambda each: each.final_kl)
    cut = scores.cut(best.candidate.shape, parent_spec)
    if not (out / "model").exists():
        prune_directory(directory, cut, out / "model", scores.corrections(cut))
    write_json(out / CANDIDATES_FILE, _record(settings, parent_spec, found, ranked, finalists))
    return _summary(parent_spec, found, ranked, best)


def _check_budget(settings: CompressSettings, grid: Grid, parent: ModelSpec) -> None:
    """Raise ConfigError if nothing fits whichever layers go, before anything is measured."""
    depths = stand_in_depths(parent, grid, max_share=1.0)
    budget = parse_bytes(settings.memory)
    candidates(parent, depths, settings.ranges, settings.workload, budget)


def _text(settings: CompressSettings, source: TextSource) -> Batches:
    """Return rows to measure on, to compare on and to heal on, in this order.

    What is measured on and what is compared on have nothing in common; healing may repeat either.
    """
    measured = settings.calibration_rows + settings.held_out_rows
    healed = settings.healing.num_steps * settings.healing.accumulation
    # Packed conversations leave some of a row empty, so a few more rows are needed.
    num_rows = (measured + healed) * 5 // 4 + 1
    return source(settings.row_tokens, 1, num_rows, settings.seed, num_new=measured)


def _scores(
    settings: CompressSettings, grid: Grid, parent: Path, text: Batches, folder: Path
) -> Scores:
    """Measure importance, and as many removals of layers as the least depth needs."""
    spec = read_spec(parent)
    fields = {
        "num_removals": spec.num_layers - grid.num_layers[0],
        "keep": settings.score.keep | {"*": min(grid.keep_attention, spec.num_attention_layers)},
    }
    rows = _rows(text, settings.calibration_rows, settings.row_tokens)
    scores = score(parent, rows, folder, settings.score.model_copy(update=fields))
    if settings.importance == "random":
        return scores.shuffled(mix_seed(settings.seed, "random importance"))
    return scores


def _rows(text: Batches, num_rows: int, row_tokens: int) -> torch.Tensor:
    """Return (num_rows, row_tokens) tokens, one document after another."""
    tape: list[torch.Tensor] = []
    missing = num_rows * row_tokens
    while missing > 0:
        tape.append(_next(text).tokens[0])
        missing -= len(tape[-1])
    return torch.cat(tape)[: num_rows * row_tokens].view(num_rows, row_tokens)


def _next(text: Batches) -> PackedBatch:
    try:
        return next(text)
    except StopIteration:
        raise DataError(
            "the text ended before the search; lower calibration_rows or held_out_rows"
        ) from None


def _candidates(
    settings: CompressSettings, grid: Grid, parent: ModelSpec, scores: Scores
) -> tuple[list[Candidate], list[Candidate]]:
    """Return all that fits, and what of it is to be ranked."""
    depths = [scores.layers(num_layers) for num_layers in grid.num_layers]
    budget = parse_bytes(settings.memory)
    found = candidates(parent, depths, settings.ranges, settings.workload, budget)
    on_edge = edge(found, parent, settings.ranges)
    number = min(settings.max_ranked, len(on_edge))
    return found, [on_edge[index * len(on_edge) // number] for index in range(number)]


def _ranked(
    settings: CompressSettings,
    directory: Path,
    on_edge: Sequence[Candidate],
    scores: Scores,
    held_out: Sequence[PackedBatch],
    work: Path,
) -> list[Ranked]:
    """Return the candidates with what was found out about them, nearest to the parent first."""
    model = ModelDirectory(directory)
    yardstick = StreamedYardstick(model, held_out, settings.score.sweep(model))
    speeds = [throughput(each.spec, settings.hardware, settings.workload) for each in on_edge]
    return rank(on_edge, speeds, scores, yardstick, work / "ranking.json")


def _record(
    settings: CompressSettings,
    parent: ModelSpec,
    found: Sequence[Candidate],
    ranked: Sequence[Ranked],
    finalists: Sequence[Ranked],
) -> dict[str, Any]:
    """Return what the search saw, as JSON values; the first of the finalists is the child."""
    terms = memory(parent, settings.workload)
    healed = {each.candidate.name: each for each in finalists}
    order = sorted(finalists, key=lambda each: each.final_kl)
    return {
        "budget_bytes": parse_bytes(settings.memory),
        "workload": settings.workload.model_dump(mode="json"),
        "hardware": settings.hardware.model_dump(mode="json"),
        "parent": {
            "pattern": parent.pattern,
            "num_parameters": parent.num_parameters,
            "memory": {**terms._asdict(), "total": terms.total},
            **throughput(parent, settings.hardware, settings.workload)._asdict(),
        },
        "num_fitting": len(found),
        "ranked": [healed.get(each.candidate.name, each).record() for each in ranked],
        "finalists": [each.candidate.name for each in order],
    }


def _summary(
    parent: ModelSpec, found: Sequence[Candidate], ranked: Sequence[Ranked], best: Ranked
) -> dict[str, float]:
    summary = {
        "parameters": float(best.candidate.spec.num_parameters),
        "parameters_parent": float(parent.num_parameters),
        "memory_bytes": float(best.candidate.memory.total),
        "candidates": float(len(found)),
        "candidates_ranked": float(len(ranked)),
        "kl": best.kl,
    }
    return summary if best.healed_kl is None else summary | {"kl_healed": best.healed_kl}
