"""What generators start from: the stage's documents, and the user's rows of seeds."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from plait.core.errors import DataError
from plait.synth.settings import Page, Sources, SynthSettings

Row = TypeVar("Row", bound=BaseModel)
Item = TypeVar("Item")


class Seed(BaseModel):
    """A question to begin with: a row of a user's file. Other fields are left alone."""

    id: str = ""
    question: str
    answer: str | None = None
    options: tuple[str, ...] = ()


class Question(NamedTuple):
    """A question on its way through the steps of a generator."""

    id: str
    question: str


def read_rows(files: Sequence[Path], form: type[Row]) -> Iterator[Row]:
    """Yield the rows of JSONL files; an empty `id` becomes file and line.

    Raises: DataError naming file and line of a row that is none.
    """
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                place = f"{file.name}:{number}"
                try:
                    row = form.model_validate_json(line)
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(map(str, first["loc"]))
                    raise DataError(f"{file}, line {number}: {where} {first['msg']}") from None
                if not getattr(row, "id", place):
                    row = row.model_copy(update={"id": place})
                yield row


def count_lines(files: Sequence[Path]) -> int:
    """Return how many lines files have together."""
    num_lines = 0
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                num_lines += block.count(b"\n")
    return num_lines


def first(settings: SynthSettings, items: Iterator[Item]) -> Iterator[Item]:
    """Yield as many items as the settings allow."""
    return itertools.islice(items, settings.max_items)


def read_pages(sources: Sources, files: Sequence[Path]) -> Iterator[Page]:
    """Yield documents: of the input `documents`, then of the user's files.

    Raises: DataError naming file and line of what is no document.
    """
    for number, document in enumerate(sources.documents(), 1):
        yield Page(
            str(document.get("id", f"document:{number}")),
            document["text"],
            document.get("metadata") or {},
        )
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    name = str(row.get("id", f"{file.name}:{number}"))
                    page = Page(name, row["text"], row.get("metadata") or {})
                    f"{page.id}{page.text}".encode()
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    raise DataError(
                        f"{file}, line {number}: a document is an object with a text"
                    ) from None
                yield page
