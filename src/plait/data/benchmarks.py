"""The questions that training text must not hold: read from JSONL files and from held-out sets.

A benchmark is what its owner calls one: GSM8K (`question`), IFEval (`prompt`), BFCL (`question`, a
list of turns), or what the stages of a recipe hold out (`data/test.jsonl`, whose `prompt` is a
conversation). A question's text is that of its fields: strings as they are, of messages what users
say, choices one a line.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plait.core.errors import DataError
from plait.data.quality_settings import DecontaminateSettings

QUESTION_FIELDS = ("question", "prompt", "problem", "query", "instruction", "text")
CHOICE_FIELDS = ("choices", "options")
ID_FIELDS = ("id", "task_id", "key")
HELD_OUT = Path("data") / "test.jsonl"


class Item(NamedTuple):
    """One question of a benchmark."""

    benchmark: str
    id: str
    """As the file says, or file and line."""
    text: str


def read_items(settings: DecontaminateSettings, held_out: Sequence[Path] = ()) -> list[Item]:
    """Return the questions of all benchmarks and of the stages whose folders are `held_out`.

    Raises: ConfigError for a path that matches nothing; DataError naming file and line of what is
    no question, or if there are none at all.
    """
    items = [
        item
        for benchmark in settings.benchmarks
        for file in settings.files_of(benchmark)
        for item in _read(file, benchmark.name, benchmark.fields)
    ]
    for folder in held_out:
        file = folder / HELD_OUT
        if not file.is_file():
            raise DataError(f"{file}: not there; a stage under benchmarks holds its questions so")
        items += _read(file, folder.name, ())
    if not items:
        raise DataError(
            "decontaminate: no questions to keep out; name files under decontaminate.benchmarks or "
            "stages under the input benchmarks"
        )
    return items


def _read(file: Path, name: str, fields: Sequence[str]) -> Iterator[Item]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not JSON ({error}); a benchmark is JSONL") from None
            text = _text_of(row, fields, where)
            found = [row[field] for field in ID_FIELDS if field in row]
            yield Item(name, str(found[0]) if found else f"{file.name}:{number}", text)


def _text_of(row: Any, fields: Sequence[str], where: str) -> str:
    if not isinstance(row, dict):
        raise DataError(f"{where}: not an object with a question")
    chosen = list(fields)
    if not chosen:
        chosen = [field for field in QUESTION_FIELDS if field in row][:1]
        chosen += [field for field in CHOICE_FIELDS if chosen and field in row]
    missing = [field for field in chosen if field not in row]
    text = "\n".join(part for field in chosen if field in row for part in _strings(row[field]))
    if missing or not text.strip():
        wanted = ", ".join(fields or QUESTION_FIELDS)
        there = ", ".join(row) or "nothing"
        raise DataError(
            f"{where}: no text in {wanted}; it has {there}; name the fields that make the question "
            'in the benchmark\'s table: fields = ["..."]'
        )
    return text.strip()


def _strings(value: Any) -> Iterator[str]:
    """Yield the texts in a value; of messages, those that are not an answer."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
    elif isinstance(value, dict) and "content" in value:
        if value.get("role") not in ("assistant", "system", "tool"):
            yield from _strings(value["content"])
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
