"""contamination.json: what was taken out, for which question of which benchmark, and how."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.core.artifact import write_json
from plait.data.decontaminate import FOUND, read_index

FILE = "contamination.json"


class Removals:
    """Collects what was removed."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, record: Mapping[str, Any]) -> None:
        """Note a dropped document, if it was dropped for a benchmark's question."""
        if FOUND in record:
            about = {key: record.get(key) for key in ("id", "url", "category")}
            self.rows.append(about | record[FOUND])

    def table(self, index: Path, with_judge: bool) -> dict[str, Any]:
        """Return all of it as JSON-able data, beside what was looked for and how."""
        known = read_index(index)
        questions = Counter(item.benchmark for item in known.items)
        documents = {name: Counter[str]() for name in questions}
        found = {name: set[str]() for name in questions}
        for row in self.rows:
            documents[row["benchmark"]][row["by"]] += 1
            found[row["benchmark"]].add(row["item"])
        return {
            "method": describe_method(known.settings.model_dump(), with_judge),
            "questions_too_short": int((known.words.totals == 0).sum()),
            "benchmarks": {
                name: {
                    "questions": questions[name],
                    "questions_found": len(found[name]),
                    "documents": dict(sorted(documents[name].items())),
                }
                for name in sorted(questions)
            },
            "removed": self.rows,
        }

    def write(self, out: Path, index: Path, with_judge: bool) -> dict[str, Any]:
        """Write the table to `out`/contamination.json and return it."""
        table = self.table(index, with_judge)
        write_json(out / FILE, table)
        return table


def describe_method(settings: Mapping[str, Any], with_judge: bool) -> str:
    """Say in a few words how questions were looked for."""
    words = (
        f"{settings['ngram_words']} words in a row, from {settings['min_overlap']:.0%} of a "
        "question's"
    )
    embedding = settings["embedding"]
    if embedding is None:
        return f"{words}; questions in other words were not looked for"
    model = embedding["model"] or "MiniLM"
    if with_judge:
        limit = embedding["min_similarity"]
        return (
            f"{words}; likeness by {model} from {limit:g}, decided by the model of the role judge"
        )
    limit = embedding["drop_similarity"]
    return f"{words}; likeness by {model} from {limit:g} alone, for want of a judge"
