"""Source code: taken as it stands, judged by rules of its own."""

from collections.abc import Sequence

from datatrove.data import Document

from plait.data.curate_settings import CategorySettings, CodeRules
from plait.data.steps import Step, Task, per_document


def steps(category: CategorySettings) -> Sequence[Step]:
    """Return the steps from file to judged code."""

    def judge(document: Document, task: Task) -> str | None:
        return code_fault(document.text, category.code)

    return [per_document("read_code", _read), per_document("heuristics", judge)]


def late_steps(category: CategorySettings) -> Sequence[Step]:
    """Return nothing: all is judged before deduplication."""
    return []


def code_fault(text: str, rules: CodeRules) -> str | None:
    """Return why source code is not kept, or None."""
    lines = text.split("\n")
    if len(text) < rules.min_characters:
        return "code_too_short"
    if len(text) > rules.max_characters:
        return "code_too_long"
    if max(map(len, lines)) > rules.max_line_characters:
        return "code_long_line"
    if len(text) / len(lines) > rules.max_mean_line_characters:
        return "code_long_lines"
    if sum(map(str.isalnum, text)) < rules.min_alphanumeric * len(text):
        return "code_few_letters"
    return None


def _read(document: Document, task: Task) -> str | None:
    media_type = document.metadata.pop("media_type").split(";")[0].strip().lower()
    document.metadata["language"] = media_type.removeprefix("text/").removeprefix("x-")
    document.text = document.text.replace("\r\n", "\n").strip()
    return None if document.text else "no_text"
