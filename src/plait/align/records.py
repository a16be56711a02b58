"""What users hand in: JSONL (or parquet) rows, the bad ones counted and named instead of fatal.

    conversations   {"messages": [...], "tools": [...]}
    preferences     {"prompt": ..., "chosen": ..., "rejected": ...}
    prompts         {"prompt": ..., "verifier": "number", "reference": "7"}

These are the field names of TRL and of the data sets on the hub. A side of a preference may be a
text or a list of messages; without `prompt`, what both sides begin with is the prompt. A row that
cannot be used is left out and named by file and line, so one bad row among a million does not cost
the run; `strict` makes the first one an error.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plait.core.artifact import write_atomic
from plait.core.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]
Message = Mapping[str, Any]

NUM_SHOWN = 3


class Refusals:
    """Rows that cannot be used: collected, or an error at once if `strict`."""

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.reasons: list[str] = []
        """One per row, each naming file and line."""

    @contextmanager
    def row(self) -> Iterator[None]:
        """Run the handling of one row; a DataError in it refuses the row.

        Raises: that DataError if strict.
        """
        try:
            yield
        except DataError as error:
            if self.strict:
                raise
            self.reasons.append(str(error))

    def report(self, file: Path) -> None:
        """Warn about what was refused and write all reasons to `file`, one a line."""
        if not self.reasons:
            return
        write_atomic(file, "".join(reason.replace("\n", " ") + "\n" for reason in self.reasons))
        shown = "; ".join(self.reasons[:NUM_SHOWN])
        more = len(self.reasons) - NUM_SHOWN
        logger.warning(
            "%d rows refused: %s%s. All are in %s; strict = true stops at the first",
            len(self.reasons),
            shown,
            f"; and {more} more" if more > 0 else "",
            file,
        )


def existing_files(names: Iterable[str]) -> list[Path]:
    """Return the user's files.

    Raises: ConfigError for one that does not exist.
    """
    paths = [Path(name).expanduser() for name in names]
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"files: {path} does not exist (from {Path.cwd()})")
    return paths


def read_records(files: Iterable[Path], refusals: Refusals) -> Iterator[dict[str, Any]]:
    """Yield the rows of JSONL or parquet files as objects whose `id` is file and line.

    Raises: DataError for a file that cannot be read, or for a bad row if strict.
    """
    for file in files:
        rows = _parquet_rows(file) if file.suffix == ".parquet" else _json_rows(file)
        for number, row in enumerate(rows, 1):
            name = f"{file}, line {number}"
            with refusals.row():
                yield {**_as_object(row, name), "id": name}


def _json_rows(file: Path) -> Iterator[bytes]:
    try:
        lines = file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    with lines:
        yield from lines


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ConfigError(f"{file}: parquet needs pyarrow: pip install 'plait[data]'") from None
    try:
        for batch in ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable parquet file: {error}") from None


def _as_object(row: bytes | dict[str, Any], name: str) -> dict[str, Any]:
    if isinstance(row, dict):
        # Arrow fills in every field that some row has.
        return {key: value for key, value in row.items() if value is not None}
    try:
        record = json.loads(row)
    except ValueError as error:
        raise DataError(f"{name}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise DataError(f"{name}: a row is a JSON object; found {str(record)[:40]}")
    return record


def messages_under(record: Record, key: str) -> list[Message]:
    """Return the list of messages under a key.

    Raises: DataError naming the record if it is none.
    """
    value = record.get(key)
    name = record.get("id", "a record")
    if not isinstance(value, list):
        raise DataError(f"{name}: needs a list of messages under `{key}`")
    if not value or not all(isinstance(m, Mapping) and m.get("role") for m in value):
        raise DataError(f"{name}: `{key}` holds messages, objects with role and content")
    return value


def prompt_messages(record: Record) -> list[Message]:
    """Return the prompt of a record as messages; a text is one message of a user.

    Raises: DataError naming the record if there is no prompt, or an assistant has its last word.
    """
    prompt = record.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        return [{"role": "user", "content": prompt}]
    messages = messages_under(record, "prompt")
    if messages[-1]["role"] == "assistant":
        raise DataError(f"{record.get('id', 'a record')}: the prompt ends with an assistant's turn")
    return messages


def preference_sides(record: Record) -> tuple[list[Message], list[Message], list[Message]]:
    """Return prompt, chosen answer and rejected answer of a preference, as messages.

    Raises: DataError naming the record if a part is missing, empty or the sides are equal.
    """
    name = record.get("id", "a record")
    sides = []
    for key in ("chosen", "rejected"):
        text = record.get(key)
        if isinstance(text, str):
            sides.append([{"role": "assistant", "content": text}])
        else:
            sides.append(messages_under(record, key))
    chosen, rejected = sides
    if chosen == rejected:
        raise DataError(f"{name}: chosen and rejected are equal, so there is no preference")
    if "prompt" in record:
        prompt = prompt_messages(record)
    else:
        shared = sum(1 for _ in _common(chosen, rejected))
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if not prompt:
            raise DataError(f"{name}: no `prompt`, and the sides do not begin with the same turns")
    for key, side in (("chosen", chosen), ("rejected", rejected)):
        if not side or side[-1]["role"] != "assistant":
            raise DataError(f"{name}: `{key}` must end with an assistant's turn")
    return prompt, chosen, rejected


def _common(first: list[Message], second: list[Message]) -> Iterator[Message]:
    for one, other in zip(first, second, strict=False):
        if one != other:
            return
        yield one
