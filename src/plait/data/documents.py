"""Documents on disk: `documents/{train,validation}/<category>.jsonl`, one JSON object per line.

Each has `text`, `id` and `metadata`. This is what curation writes and the tokenizer and blend read.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plait.core.errors import DataError


def document_files(folder: Path, split: str) -> dict[str, Path]:
    """Return the files of a curated folder by category, in alphabetic order.

    Raises: DataError if there is none.
    """
    directory = folder / "documents" / split
    files = {file.stem: file for file in sorted(directory.glob("*.jsonl"))}
    if not files:
        raise DataError(f"{directory}: no <category>.jsonl here; run the curation stage first")
    return files


def read_documents(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the documents of a file.

    Raises: DataError naming file and line for what is not a document.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                document = json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}, line {number}: not a JSON document: {error}") from None
            if not isinstance(document, dict) or not isinstance(document.get("text"), str):
                raise DataError(f"{file}, line {number}: a document needs a text field")
            if b"\\ud" in line and not _is_unicode(document["text"]):
                raise DataError(f"{file}, line {number}: half of a surrogate pair in the text")
            yield document


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
