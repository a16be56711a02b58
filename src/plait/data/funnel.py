"""The account of a curation: for every category, pages in = documents kept + documents dropped.

The three numbers come from three places (the reader's counters, the written documents, the record
of drops), so that a document lost on the way shows.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from plait.core.errors import DataError


class Kept(NamedTuple):
    """What is counted of a kept document."""

    category: str
    language: str
    source: str
    licence: str | None
    characters: int
    num_bytes: int
    is_validation: bool


class Funnel:
    """Counts by category; sums are checked when it is read."""

    def __init__(self, categories: Iterable[str], pages_in: dict[str, int]) -> None:
        self.pages_in = pages_in
        self.dropped = {name: Counter[str]() for name in categories}
        self.kept = {name: Counter[str]() for name in categories}
        self.languages = {name: Counter[str]() for name in categories}
        self.sources: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in categories}

    def add_dropped(self, category: str, reason: str) -> None:
        """Count a dropped document."""
        self.dropped[category][reason] += 1

    def add_kept(self, document: Kept) -> None:
        """Count a kept document."""
        split = "validation" if document.is_validation else "train"
        self.kept[document.category].update(
            {
                "documents": 1,
                split: 1,
                "characters": document.characters,
                "bytes": document.num_bytes,
            }
        )
        self.languages[document.category][document.language] += 1
        source = self.sources[document.category].setdefault(
            document.source, {"documents": 0, "characters": 0, "licence": document.licence}
        )
        source["documents"] += 1
        source["characters"] += document.characters

    def table(self) -> dict[str, Any]:
        """Return everything as JSON-able data.

        Raises: DataError if a category's numbers do not add up.
        """
        return {name: self._category(name) for name in self.kept}

    def _category(self, name: str) -> dict[str, Any]:
        pages, kept = self.pages_in.get(name, 0), self.kept[name]
        dropped = sum(self.dropped[name].values())
        if pages != kept["documents"] + dropped:
            raise DataError(
                f"category {name!r}: {pages} pages went in, but {kept['documents']} kept and "
                f"{dropped} dropped came out; delete the stage's folder and run it again"
            )
        return {
            "documents_in": pages,
            "documents_kept": kept["documents"],
            "documents_dropped": dropped,
            "train": kept["train"],
            "validation": kept["validation"],
            "characters": kept["characters"],
            "bytes": kept["bytes"],
            "dropped": dict(self.dropped[name].most_common()),
            "languages": dict(self.languages[name].most_common()),
            "sources": dict(sorted(self.sources[name].items())),
        }


def describe_losses(table: dict[str, Any]) -> str:
    """Say in a few words why a category kept nothing."""
    if not table["documents_in"]:
        return "its sources hold no page"
    reasons = ", ".join(f"{count} {reason}" for reason, count in table["dropped"].items())
    return f"all of its {table['documents_in']} pages were dropped: {reasons}"


def stage_metrics(categories: dict[str, Any]) -> dict[str, float]:
    """Flatten the account into the stage's summary."""
    metrics: dict[str, float] = {
        key: float(sum(table[key] for table in categories.values()))
        for key in ("documents_in", "documents_kept", "characters")
    }
    for name, table in categories.items():
        metrics[f"kept.{name}"] = float(table["documents_kept"])
        metrics[f"characters.{name}"] = float(table["characters"])
    return metrics
