"""What is asked of documents once duplicates are gone: their content's own, benchmarks, scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from plait.core.recipe import inputs_of
from plait.data.benchmarks import read_items
from plait.data.curate_settings import CategorySettings, CurateSettings
from plait.data.decontaminate import decontaminate_step, open_index
from plait.data.quality import check_classifier, score_step
from plait.data.quality_settings import DecontaminateSettings
from plait.data.steps import Step, path_module


class Tools(NamedTuple):
    """What the late steps read; None where there is none."""

    student: Path | None = None
    """Folder of a trained student."""
    index: Path | None = None
    """Folder of the index of benchmarks to keep out."""


def open_tools(settings: CurateSettings, inputs: Mapping[str, Path], cache: Path) -> Tools:
    """Return what the late steps read; the index of benchmarks is kept in `cache`.

    Raises: ConfigError or CheckpointError for what the settings name and is not there; DataError
    for a benchmark that cannot be read.
    """
    student = inputs.get("student")
    for category in settings.categories.values():
        for score in category.scores:
            if score.by != "endpoint":
                check_classifier(score, student)
    held_out = inputs_of(inputs, "benchmarks")
    chosen = settings.decontaminate or (DecontaminateSettings() if held_out else None)
    if chosen is None:
        return Tools(student)
    return Tools(student, open_index(read_items(chosen, held_out), chosen, cache))


def late_steps(category: CategorySettings, tools: Tools) -> Sequence[Step]:
    """Return the steps after deduplication."""
    return [
        *path_module(category).late_steps(category),
        *([decontaminate_step(tools.index)] if tools.index else []),
        *(score_step(score, tools.student) for score in category.scores),
    ]
