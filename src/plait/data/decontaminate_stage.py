"""The stage `decontaminate`: text written or collected elsewhere, without benchmarks' questions.

    out/documents/{train,validation}/<category>.jsonl    what is left of all `documents`
    out/conversations.jsonl                              of theirs, and of the user's files
    out/contamination.json                               what was taken out, and why

Curation does the same to its own documents (`curate`); this is for synthetic documents and for
conversations to fine-tune on. A run that is stopped starts anew; answers of the judge are kept.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from plait.core.artifact import atomic_directory, atomic_file
from plait.core.endpoint import EndpointSettings
from plait.core.errors import DataError
from plait.core.progress import track
from plait.core.recipe import inputs_of
from plait.data.benchmarks import read_items
from plait.data.decontaminate import FOUND, decontaminate_step, open_index
from plait.data.decontaminate_report import Removals
from plait.data.documents import document_files
from plait.data.quality_settings import DecontaminateSettings
from plait.data.source_settings import matching_files
from plait.data.steps import Ask, Task

CONVERSATIONS = "conversations.jsonl"


class DecontaminateStageSettings(DecontaminateSettings):
    """Settings of the stage `decontaminate`."""

    files: tuple[str, ...] = ()
    """The user's JSONL files of conversations (`messages`) or documents (`text`)."""
    endpoints: dict[Literal["judge"], EndpointSettings] = Field(default={})
    """The model that says whether two texts ask the same."""

    def files_read(self) -> list[Path]:
        """Return the user's files and those of the benchmarks."""
        return [*matching_files(self.files, "files"), *super().files_read()]


def run(
    settings: DecontaminateStageSettings,
    inputs: dict[str, Path],
    out: Path,
    ask: Mapping[str, Ask] | None = None,
) -> dict[str, float]:
    """Write what is left of all inputs `documents` and of the user's files.

    Returns: `rows_in`, `rows_kept`, and `removed.<reason>`.
    Raises: DataError for a row that cannot be read, or if there is none.
    """
    chosen = DecontaminateSettings.model_validate(
        settings.model_dump(exclude={"files", "endpoints"})
    )
    items = read_items(chosen, inputs_of(inputs, "benchmarks"))
    index = open_index(items, chosen, out / "cache")
    cleaner = _Cleaner(index, out / "cache", ask or {})
    folders = inputs_of(inputs, "documents")
    with atomic_directory(out / "documents") as partial:
        for split in ("train", "validation"):
            (partial / split).mkdir()
            for category, files in _documents(folders, split).items():
                cleaner.clean(files, partial / split / f"{category}.jsonl")
    conversations = [folder / CONVERSATIONS for folder in folders]
    given = [file for file in conversations if file.is_file()]
    given += matching_files(settings.files, "files")
    if given:
        with atomic_file(out / CONVERSATIONS) as path:
            cleaner.clean(given, path)
    if not cleaner.num_in:
        raise DataError("decontaminate: nothing to look through; give files or documents")
    cleaner.removals.write(out, index, "judge" in (ask or {}))
    removed = Counter(row["by"] for row in cleaner.removals.rows)
    counts = {"rows_in": cleaner.num_in, "rows_kept": cleaner.num_in - removed.total()}
    return {
        **{name: float(count) for name, count in counts.items()},
        **{f"removed.{reason}": float(count) for reason, count in removed.items()},
    }


class _Cleaner:
    """Takes rows of files through the step; what it keeps is written as it was read."""

    def __init__(self, index: Path, cache: Path, ask: Mapping[str, Ask]) -> None:
        self.step = decontaminate_step(index)
        self.cache, self.ask = cache, ask
        self.removals = Removals()
        self.num_in = 0

    def clean(self, files: Iterable[Path], target: Path) -> None:
        """Write the rows of files that hold no question to `target`."""
        task = Task(target.stem, self._drop, self.cache, self.ask)
        with target.open("wb") as out:
            rows = track(self._read(files), f"decontaminate {target.stem}", unit="rows")
            for document in self.step.run(rows, task):
                out.write(document.metadata["line"].rstrip(b"\n") + b"\n")

    def _read(self, files: Iterable[Path]) -> Iterator[Any]:
        from datatrove.data import Document

        for file in files:
            with file.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.strip():
                        continue
                    text, name = _text_of(line, f"{file}, line {number}")
                    self.num_in += 1
                    about = {"line": line, "category": file.stem, "url": str(file)}
                    yield Document(text, name or f"{file.name}:{number}", metadata=about)

    def _drop(self, document: Any, reason: str) -> None:
        about = {key: document.metadata[key] for key in ("url", "category", FOUND)}
        self.removals.add({"id": document.id, **about})


def _documents(folders: list[Path], split: str) -> dict[str, list[Path]]:
    with_documents = [folder for folder in folders if any((folder / "documents" / split).glob("*"))]
    return document_files(with_documents, split) if with_documents else {}


def _text_of(line: bytes, where: str) -> tuple[str, str | None]:
    """Return a row's text and id."""
    try:
        row = json.loads(line)
        if "text" in row:
            text = row["text"]
        else:
            said = [message.get("content") for message in row["messages"]]
            text = "\n\n".join(part for part in said if isinstance(part, str))
        text.encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{where}: not an object with a text or messages") from None
    return text, row.get("id") and str(row["id"])
