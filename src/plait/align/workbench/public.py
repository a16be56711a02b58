"""Load the public WorkBench data: its own five tables and 690 queries with gold calls.

The files are those of its repository: `calendar_events.csv`, `emails.csv`, `analytics_data.csv`,
`project_tasks.csv`, `customer_relationship_manager_data.csv`, `email_addresses.csv` and
`queries_and_answers/*.csv`. Gold calls are Python text there; they are read as literals, never run.
Test items: for evaluation only, not to be trained on. Source: WorkBench, arXiv 2405.00823 (MIT).
"""

import ast
import csv
from pathlib import Path
from typing import NamedTuple

from plait.align.workbench.office import Office, Row
from plait.align.workbench.tools import TOOLS
from plait.core.errors import DataError
from plait.grade.toolcall import ToolCall

# File, id column and columns that have other names here, for each table.
_FILES: dict[str, tuple[str, str, dict[str, str]]] = {
    "events": ("calendar_events.csv", "event_id", {}),
    "emails": (
        "emails.csv",
        "email_id",
        {"inbox/outbox": "box", "sender/recipient": "address", "sent_datetime": "sent_time"},
    ),
    "visits": ("analytics_data.csv", "", {}),
    "tasks": ("project_tasks.csv", "task_id", {}),
    "customers": ("customer_relationship_manager_data.csv", "customer_id", {}),
}


class PublicTask(NamedTuple):
    """One query of the public data; all share one office."""

    domains: str
    query: str
    gold: list[ToolCall]


def load_public_office(folder: Path) -> Office:
    """Read the five tables and the directory.

    Raises: DataError naming a file that is missing or lacks its id column.
    """
    tables = {}
    for table, (name, key, renamed) in _FILES.items():
        rows: dict[str, Row] = {}
        for number, row in enumerate(_read(folder / name)):
            identity = row.pop(key, None) if key else f"{number:08}"
            if identity is None:
                raise DataError(f"{folder / name}: no column {key!r}; is this WorkBench's file?")
            rows[identity] = {renamed.get(column, column): text for column, text in row.items()}
        tables[table] = rows
    addresses = _lines(folder / "email_addresses.csv")
    return Office([line.strip().lower() for line in addresses if line.strip()], tables)


def load_public_tasks(folder: Path) -> list[PublicTask]:
    """Read all queries with their gold calls, in the order of the files' names.

    Raises: DataError naming a file that is missing, or the record whose calls cannot be read.
    """
    files = sorted((folder / "queries_and_answers").glob("*.csv"))
    if not files:
        raise DataError(f"{folder}/queries_and_answers: no CSV files; is this WorkBench's data?")
    tasks = []
    for file in files:
        for number, row in enumerate(_read(file), 1):
            try:
                gold = [_as_call(text) for text in ast.literal_eval(row["answer"])]
                tasks.append(PublicTask(row["domains"], row["query"], gold))
            except (KeyError, ValueError, SyntaxError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{file}: record {number} is no query with calls: {error}"
                ) from None
    return tasks


def _as_call(text: str) -> ToolCall:
    """Read `domain.tool.func(name="value", ...)`.

    Raises: ValueError, SyntaxError, TypeError or AttributeError if it is anything else.
    """
    call = ast.parse(text, mode="eval").body
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError(f"{text!r} is no call with named arguments")
    domain, name, _ = ast.unparse(call.func).split(".")
    name = f"{'crm' if domain == 'customer_relationship_manager' else domain}_{name}"
    if name not in TOOLS:
        raise ValueError(f"{text!r} calls no tool of the workbench")
    arguments = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    return ToolCall(name, arguments)


def _read(file: Path) -> list[Row]:
    return [dict(row) for row in csv.DictReader(_lines(file))]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; it belongs to WorkBench's data") from None
