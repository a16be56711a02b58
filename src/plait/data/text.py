"""Documents that are text already: tidied, then language and heuristic rules."""

from collections.abc import Sequence

from datatrove.data import Document

from plait.data.curate_settings import CategorySettings
from plait.data.extract import tidy
from plait.data.heuristics import heuristics_step
from plait.data.language import language_step
from plait.data.steps import Step, Task, per_document


def steps(category: CategorySettings) -> Sequence[Step]:
    """Return the steps from the text as it was found to judged text."""
    return [per_document("tidy", _tidied), language_step(category), heuristics_step(category)]


def late_steps(category: CategorySettings) -> Sequence[Step]:
    """Return nothing: all is judged before deduplication."""
    return []


def _tidied(document: Document, task: Task) -> str | None:
    document.metadata.pop("media_type", None)
    document.text = tidy(document.text)
    return None if document.text else "no_text"
