"""The stage `student`: labels of some documents in, a classifier of all others out.

    out/labels.jsonl       what it learnt from: text, id and labels
    out/student/           the student (`student`)

Labels come from the user's files (`{"text": ..., "educational": 4}` a line) and, for documents of
the input `documents`, from the model of the role `label`. What a model has answered is kept, so a
run that is stopped asks for nothing twice.
"""

import heapq
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from plait.core.artifact import atomic_file
from plait.core.config import Settings, nearest
from plait.core.endpoint import EndpointSettings
from plait.core.errors import ConfigError, DataError
from plait.core.progress import Progress
from plait.core.recipe import inputs_of
from plait.core.seed import mix_seed
from plait.data.documents import document_files, read_documents
from plait.data.labels import SUBJECTS, ask_labels, check_label
from plait.data.quality_settings import RUBRICS, SUBJECT
from plait.data.source_settings import matching_files
from plait.data.steps import Ask
from plait.data.student import Features, train

logger = logging.getLogger(__name__)

_AT_ONCE = 256

Row = dict[str, Any]


class StudentSettings(Settings):
    """Settings of the stage `student`."""

    labels: tuple[str, ...] = Field(min_length=1)
    """What is learnt: `educational`, `difficulty`, `maths`, `subject`; from files also others, of
    0 to 5."""
    files: tuple[str, ...] = ()
    """JSONL files of the user's with `text` and some of the labels."""
    categories: tuple[str, ...] = ()
    """Categories of the input `documents` that are labelled; none means all."""
    num_documents: int = Field(default=5_000, ge=8)
    """Documents that a model labels, chosen by a hash of their id. Our choice."""
    features: Literal["embedding", "words"] = "embedding"
    """`embedding` knows meaning; `words` counts words and pairs, some hundred times as fast."""
    model: str | None = None
    """Directory of the encoder for `embedding`; None takes MiniLM (English)."""
    endpoints: dict[Literal["label"], EndpointSettings] = Field(default={})
    """The model that labels documents."""
    seed: int = 0
    """Of the choice of documents."""

    @model_validator(mode="after")
    def _asked(self) -> "StudentSettings":
        for name in self.labels if "label" in self.endpoints else ():
            if name not in RUBRICS:
                raise ValueError(f"no rubric {name!r} to ask for; {nearest(name, list(RUBRICS))}")
        if not self.files and "label" not in self.endpoints:
            raise ValueError("labels come from files, or from a table endpoints.label")
        return self

    def files_read(self) -> list[Path]:
        """Return the user's files. Raises: ConfigError for a pattern that matches nothing."""
        return matching_files(self.files, "files")


def run(
    settings: StudentSettings,
    inputs: dict[str, Path],
    out: Path,
    ask: Mapping[str, Ask] | None = None,
) -> dict[str, float]:
    """Collect labels and train on them.

    Returns: for each label its number of texts and how well it was learnt, leaving one out:
    `<label>.mean_error` and `.rank_correlation`, or `.accuracy`.
    Raises: ConfigError for inputs that do not fit; DataError for labels that cannot be learnt.
    """
    rows = list(_labelled_by_user(settings))
    folders = inputs_of(inputs, "documents")
    if "label" in settings.endpoints:
        if not folders or not ask:
            raise ConfigError(
                "student: a model labels the documents of a stage; write documents = "
                '"<an earlier stage or a path>" under [inputs]'
            )
        rows += _labelled_by_model(settings, folders, ask["label"])
    if not rows:
        raise DataError(f"student: no labelled text in {', '.join(settings.files)}")
    with atomic_file(out / "labels.jsonl") as path, path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    columns = {name: [row.get(name) for row in rows] for name in settings.labels}
    student = train(
        [row["text"] for row in rows], columns, Features(settings.features, settings.model)
    )
    student.write(out / "student")
    return {
        f"{name}.{key}": float(value)
        for name, head in student.heads.items()
        for key, value in head.facts.items()
        if key != "penalty"
    }


def _labelled_by_user(settings: StudentSettings) -> Iterator[Row]:
    """Yield the rows of the user's files.

    Raises: DataError naming file and line for a row without a text or label, or with a wrong one.
    """
    for file in settings.files_read():
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _row(line, f"{file}, line {number}", f"{file.name}:{number}", settings)


def _row(line: bytes, where: str, name: str, settings: StudentSettings) -> Row:
    try:
        given = json.loads(line)
        text = given["text"]
        text.encode()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{where}: not an object with a text and labels") from None
    row = {"text": text, "id": str(given.get("id", name))}
    for label in settings.labels:
        value = given.get(label)
        if value is None:
            continue
        checked = check_label(label, value)
        if checked is None:
            raise DataError(f"{where}: {label} is {value!r}; {_allowed(label)}")
        row[label] = checked
    if len(row) == 2:
        raise DataError(
            f"{where}: has none of the labels {', '.join(settings.labels)}; it has "
            f"{', '.join(given)}"
        )
    return row


def _labelled_by_model(settings: StudentSettings, folders: Sequence[Path], ask: Ask) -> list[Row]:
    """Return the chosen documents with the labels that the model gave; those without any are left.

    Raises: ConfigError for a category that is not there; what `ask` raises.
    """
    files = document_files(folders, "train")
    for name in settings.categories:
        if name not in files:
            raise ConfigError(f"categories: no documents of {name!r}; {nearest(name, list(files))}")
    documents = (
        document
        for name, found in files.items()
        if not settings.categories or name in settings.categories
        for document in read_documents(found)
    )
    # Held by hash of the id: a second reading finds the same, in a corpus of any size.
    chosen = heapq.nsmallest(
        settings.num_documents,
        documents,
        key=lambda document: (mix_seed(settings.seed, "student", document["id"]), document["id"]),
    )
    rows: list[Row] = [{"text": document["text"], "id": document["id"]} for document in chosen]
    with Progress("label", len(rows) * len(settings.labels), "labels") as progress:
        for start in range(0, len(rows), _AT_ONCE):
            batch = rows[start : start + _AT_ONCE]
            for name in settings.labels:
                for row, label in zip(
                    batch, ask_labels(name, [row["text"] for row in batch], ask), strict=True
                ):
                    if label is not None:
                        row[name] = label
                progress.advance(len(batch))
    labelled = [row for row in rows if len(row) > 2]
    missing = sum(name not in row for row in rows for name in settings.labels)
    if missing:
        logger.warning(
            "student: %d of %d labels were not given by the model; trained without them",
            missing,
            len(rows) * len(settings.labels),
        )
    return labelled


def _allowed(label: str) -> str:
    return f"one of {', '.join(SUBJECTS)}" if label == SUBJECT else "a number from 0 to 5"
