"""Documents on disk: `documents/{train,validation}/<category>.jsonl`, one JSON object per line.

Each has `text`, `id` and `metadata`. This is what curation writes and the tokenizer and blend read.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plait.core.errors import DataError
from plait.core.text import is_unicode


def document_files(folders: Sequence[Path], split: str) -> dict[str, list[Path]]:
    """Return the files of folders with documents by category, categories in alphabetic order.

    Raises: DataError if there is none.
    """
    directories = [folder / "documents" / split for folder in folders]
    found = [file for directory in directories for file in directory.glob("*.jsonl")]
    if not found:
        places = ", ".join(map(str, directories))
        raise DataError(
            f"{places}: no <category>.jsonl here; run the curation stage first, with a "
            "validation_share above 0"
        )
    names = sorted({file.stem for file in found})
    return {name: [file for file in found if file.stem == name] for name in names}


def read_documents(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the documents of files; one without `id` gets file and line.

    Raises: DataError naming file and line for what is not a document.
    """
    for file in files:
        yield from _read_file(file)


def _read_file(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                document = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{file}, line {number}: not a JSON document: {error}") from None
            if not isinstance(document, dict) or not isinstance(document.get("text"), str):
                raise DataError(f"{file}, line {number}: a document needs a text field")
            if not is_unicode(f"{document['text']}{document.get('id', '')}"):
                raise DataError(f"{file}, line {number}: half of a surrogate pair in text or id")
            yield {"id": f"{file.name}:{number}", **document}
