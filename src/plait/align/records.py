"""What users hand in: rows of files, the bad ones counted and named instead of fatal.

    conversations   {"messages": [...], "tools": [...]}, or {"prompt": ..., "completion": ...}
    preferences     {"prompt": ..., "chosen": ..., "rejected": ...}
    prompts         {"prompt": ..., "verifier": "number", "reference": "7"}

These are the field names of TRL and of the data sets on the hub. A side of a preference may be a
text or a list of messages; without `prompt`, what both sides begin with is the prompt. A row that
cannot be used is left out and named by file and line, so one bad row among a million does not cost
the run; `strict` makes the first one an error.

Files are JSONL (also .gz), a JSON array, parquet or Arrow, or a folder of such files, as a data set
downloaded or saved by `datasets` is. One of a public set has the set's form in front:
"xlam:data/xlam.jsonl" (see `public_sets`).
"""

import gzip
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plait.align.public_sets import FORMS, converted, trace_apart
from plait.core.artifact import write_atomic
from plait.core.config import nearest
from plait.core.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]
Message = Mapping[str, Any]

NUM_SHOWN = 3
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".arrow")
"""Of the files that are read where a folder is given."""


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

    @property
    def summary(self) -> str:
        """How many rows were refused, and why the first."""
        first = f", the first: {self.reasons[0]}" if self.reasons else ""
        return f"{len(self.reasons)} rows refused{first}"

    def report(self, file: Path) -> None:
        """Warn about what was refused and write all reasons to `file`, one a line."""
        if not self.reasons:
            return
        lines = (reason.replace("\n", " ") + "\n" for reason in self.reasons)
        # Names of files and texts of rows need not be UTF-8.
        write_atomic(file, "".join(lines).encode(errors="backslashreplace"))
        shown = "; ".join(self.reasons[:NUM_SHOWN])
        more = len(self.reasons) - NUM_SHOWN
        logger.warning(
            "%d rows refused: %s%s. All are in %s; strict = true (--strict) stops at the first",
            len(self.reasons),
            shown,
            f"; and {more} more" if more > 0 else "",
            file,
        )


def existing_files(names: Iterable[str]) -> list[Path]:
    """Return the user's files, those of a folder in the order of their names.

    Raises: ConfigError for one that does not exist, a folder without files of rows, or an unknown
    form.
    """
    return [path for name in names for path in _files_of(name)[1]]


def _files_of(name: str | Path) -> tuple[str, list[Path]]:
    """Return the form that is written in front of a name, "" if none is, and its files."""
    form, colon, rest = str(name).partition(":")
    path = Path(name).expanduser()
    if colon and not path.exists():
        path = Path(rest).expanduser()
        if form not in FORMS:
            raise ConfigError(f"files: {name}: unknown form {form!r}; {nearest(form, list(FORMS))}")
    else:
        form = ""
    if path.is_file():
        return form, [path]
    if not path.is_dir():
        raise ConfigError(f"files: {path} does not exist (from {Path.cwd()})")
    files = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES))
    if (path / "state.json").exists():  # saved by datasets; its json files are no rows
        files = [file for file in files if file.suffix == ".arrow"]
    if not files:
        raise ConfigError(f"files: {path} holds no file that ends with {', '.join(SUFFIXES)}")
    return form, files


def read_records(names: Iterable[str | Path], refusals: Refusals) -> Iterator[dict[str, Any]]:
    """Yield the rows of files as records whose `id` is file and line.

    Rows of a public set that do not serve are left out silently.
    Raises: ConfigError as `existing_files`; DataError for a file that cannot be read, or for a bad
    row if strict.
    """
    for name in names:
        form, files = _files_of(name)
        for file in files:
            for number, row in enumerate(_rows(file), 1):
                if isinstance(row, bytes) and not row.strip():
                    continue
                place = f"{file}, line {number}"
                with refusals.row():
                    record = {**_as_object(row, place), "id": place}
                    if form and (record := converted(form, record)) is None:
                        continue
                    yield {**record, **_tools(record, place), "id": place}


def _rows(file: Path) -> Iterator[Any]:
    if file.suffix in (".parquet", ".arrow"):
        return _columnar_rows(file)
    return _json_rows(file)


def _json_rows(file: Path) -> Iterator[Any]:
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            first = next(lines, b"")
            if file.suffix == ".json" and first.lstrip().startswith(b"["):  # an array, not JSONL
                yield from json.loads(first + lines.read())
            else:
                yield first
                yield from lines
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from None


def _columnar_rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, ipc, memory_map
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ConfigError(f"{file}: needs pyarrow: pip install 'plait[data]'") from None
    try:
        if file.suffix == ".parquet":
            batches = ParquetFile(file).iter_batches()
        else:
            batches = iter(ipc.open_stream(memory_map(str(file))))
        for batch in batches:
            yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(f"{file}: not readable: {error}") from None


def _as_object(row: Any, name: str) -> dict[str, Any]:
    if isinstance(row, dict):
        return _without_nulls(row)
    try:
        record = json.loads(row) if isinstance(row, bytes) else row
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise DataError(f"{name}: a row is a JSON object; found {str(record)[:40]}")
    return record


def _without_nulls(value: Any) -> Any:
    """Drop the fields, at any depth, that Arrow fills in because some other row has them."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _tools(record: Record, name: str) -> dict[str, Any]:
    """Return the declarations of tools, which many sets carry as JSON text, as in TRL.

    Raises: DataError naming the row if they are no list of objects.
    """
    if "tools" not in record:
        return {}
    tools = record["tools"]
    try:
        if isinstance(tools, str):
            tools = json.loads(tools) if tools.strip() else None
        if isinstance(tools, list):
            tools = [json.loads(tool) if isinstance(tool, str) else tool for tool in tools]
    except ValueError as error:
        raise DataError(f"{name}: `tools` is a text that is not JSON: {error}") from None
    declares = isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    if tools and not declares:
        raise DataError(f"{name}: `tools` holds a list of declarations, objects with a name")
    return {"tools": tools or None}


def messages_under(record: Record, key: str) -> list[Message]:
    """Return the list of messages under a key.

    Raises: DataError naming the record if it is none.
    """
    value = record.get(key)
    name = record.get("id", "a record")
    if not isinstance(value, list):
        known = ", ".join(found for found in record if found != "id") or "none"
        raise DataError(f"{name}: needs a list of messages under `{key}`; its keys: {known}")
    if not value or not all(isinstance(m, Mapping) and m.get("role") for m in value):
        raise DataError(f"{name}: `{key}` holds messages, objects with role and content")
    return [trace_apart(message) for message in value]


def conversation_messages(record: Record) -> list[Message]:
    """Return the messages of a conversation, given as `messages` or as prompt and completion.

    Raises: DataError naming the record if there are none.
    """
    if "messages" in record or "completion" not in record:
        return messages_under(record, "messages")
    completion = record["completion"]
    if isinstance(completion, str):
        return [*prompt_messages(record), trace_apart({"role": "assistant", "content": completion})]
    return [*prompt_messages(record), *messages_under(record, "completion")]


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
        if key == "chosen" and isinstance(text, str) and not text.strip():
            raise DataError(f"{name}: `chosen` is empty")
        if isinstance(text, str):
            sides.append([trace_apart({"role": "assistant", "content": text})])
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
