"""Source code: its licence, then rules of its own, then whether it can be parsed.

read_code     text as it stands, programming language
licence       what the file, its source or its repository says (`licences`); permissive only
heuristics    OpenCoder's rules (`code_heuristics`)
syntax        share of lines that cannot be parsed (`code_syntax`)
"""

from collections.abc import Sequence

from datatrove.data import Document

from plait.data.code_heuristics import code_fault
from plait.data.code_syntax import error_share
from plait.data.curate_settings import CategorySettings
from plait.data.licences import head_licence, is_permissive, normalised
from plait.data.steps import Step, Task, per_document


def steps(category: CategorySettings) -> Sequence[Step]:
    """Return the steps from file to judged code."""
    rules = category.code

    def licence(document: Document, task: Task) -> str | None:
        return licence_fault(document, rules.detect_licences)

    def heuristics(document: Document, task: Task) -> str | None:
        return code_fault(document.text, rules, document.metadata["language"])

    def syntax(document: Document, task: Task) -> str | None:
        share = error_share(document.text, document.metadata["language"])
        return "code_syntax" if share > rules.max_error_lines else None

    return [
        per_document("read_code", _read),
        per_document("licence", licence),
        per_document("heuristics", heuristics),
        per_document("syntax", syntax),
    ]


def late_steps(category: CategorySettings) -> Sequence[Step]:
    """Return nothing: all is judged before deduplication."""
    return []


def licence_fault(document: Document, detect: bool) -> str | None:
    """Set `licence` to an SPDX expression; return why it may not be used, or None.

    `licence_from` says whether the file's own head or its repository named it.
    """
    metadata = document.metadata
    own = head_licence(document.text) if detect else None
    expression = own or normalised(metadata["licence"])
    if expression is None:
        return "license_absent"
    metadata |= {"licence": expression, "licence_from": "file" if own else "repository"}
    return None if is_permissive(expression) else "license_not_permissive"


def _read(document: Document, task: Task) -> str | None:
    media_type = document.metadata.pop("media_type").split(";")[0].strip().lower()
    document.metadata["language"] = media_type.removeprefix("text/").removeprefix("x-")
    document.text = document.text.replace("\r\n", "\n").strip()
    return None if document.text else "no_text"
