"""The account of a curation: for every category, pages in = documents kept + documents dropped.

The numbers come from three places (the counters of the walk, the written documents, the record of
drops) and are compared step by step, so that a document lost on the way shows, and where.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from plait.core.errors import DataError

UNKNOWN_LANGUAGE = "unknown"
_SAMPLES = 3
_SAMPLE_CHARACTERS = 600


class Funnel:
    """Counts by category; sums are checked when it is read.

    `steps` names what each category goes through, in order; `counts` are the counters of the walks:
    `<category>/<step>/documents` and `.../bytes`, where the step `in` stands for what came in;
    `labels` are the names of each category's scores. A category that is cut into tiers is counted
    as it was collected, and its documents once more by the categories that they end in.
    """

    def __init__(
        self,
        steps: Mapping[str, Sequence[str]],
        counts: Mapping[str, int],
        labels: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.steps, self.counts = dict(steps), counts
        self.labels = {
            name: {label: Counter[str]() for label in (labels or {}).get(name, ())}
            for name in steps
        }
        self.tiers: dict[str, dict[str, Counter[str]]] = {
            name: defaultdict(Counter) for name in steps
        }
        self.dropped: dict[str, dict[tuple[str, str, str], Counter[str]]] = {
            name: defaultdict(Counter) for name in steps
        }
        self.kept = {name: Counter[str]() for name in steps}
        self.languages: dict[str, dict[str, Counter[str]]] = {
            name: defaultdict(Counter) for name in steps
        }
        self.sources: dict[str, dict[str, Counter[str]]] = {name: {} for name in steps}
        self.licences: dict[str, dict[str, Counter[str]]] = {
            name: defaultdict(Counter) for name in steps
        }
        self.samples: dict[str, dict[str, list[dict[str, Any]]]] = {
            name: defaultdict(list) for name in steps
        }

    def add_dropped(self, record: Mapping[str, Any]) -> None:
        """Count a dropped document, as it was recorded: category, step, reason, language, bytes."""
        name, language = record["category"], record["language"] or UNKNOWN_LANGUAGE
        size = {"documents": 1, "bytes": record["bytes"]}
        self.dropped[name][record["step"], record["reason"], language].update(size)
        self._sample(name, record["reason"], record)

    def add_kept(self, document: Mapping[str, Any], is_validation: bool) -> None:
        """Count a kept document."""
        metadata, text = document["metadata"], document["text"]
        name, num_bytes = metadata.get("pool", metadata["category"]), len(text.encode())
        split = "validation" if is_validation else "train"
        size = {"documents": 1, "characters": len(text), "bytes": num_bytes}
        self.kept[name].update({**size, split: 1})
        self.tiers[name][metadata["category"]].update({**size, split: 1})
        for label, values in self.labels[name].items():
            value = metadata[label]
            values[value if isinstance(value, str) else str(round(value))] += 1
        self.languages[name][metadata["language"]].update(size)
        source = self.sources[name].setdefault(metadata["source"], Counter())
        source.update({"documents": 1, "characters": len(text)})
        self.licences[name][metadata["licence"] or "none stated"].update(size)
        self._sample(name, "kept", {"text": text, **metadata})

    def _sample(self, category: str, kind: str, record: Mapping[str, Any]) -> None:
        samples = self.samples[category][kind]
        if len(samples) < _SAMPLES and record.get("text"):
            text = record["text"][:_SAMPLE_CHARACTERS]
            samples.append(
                {"url": record.get("url"), "language": record.get("language"), "text": text}
            )

    def table(self) -> dict[str, Any]:
        """Return everything as JSON-able data.

        Raises: DataError if a category's numbers do not add up.
        """
        return {name: self._category(name) for name in self.kept}

    def _category(self, name: str) -> dict[str, Any]:
        kept = self.kept[name]
        reasons = Counter[str]()
        for (_, reason, _), size in self.dropped[name].items():
            reasons[reason] += size["documents"]
        pages = self.counts.get(f"{name}/in/documents", 0)
        if pages != kept["documents"] + reasons.total():
            raise DataError(
                f"category {name!r}: {pages} pages went in, but {kept['documents']} kept and "
                f"{reasons.total()} dropped came out; delete the stage's folder and run it again"
            )
        return {
            "documents_in": pages,
            "bytes_in": self.counts.get(f"{name}/in/bytes", 0),
            "documents_kept": kept["documents"],
            "documents_dropped": reasons.total(),
            "train": kept["train"],
            "validation": kept["validation"],
            "characters": kept["characters"],
            "bytes": kept["bytes"],
            "dropped": dict(reasons.most_common()),
            "steps": self._steps(name, pages),
            "tiers": {tier: dict(size) for tier, size in sorted(self.tiers[name].items())},
            "labels": {
                label: dict(sorted(values.items())) for label, values in self.labels[name].items()
            },
            "languages": self._languages(name),
            "sources": {source: dict(size) for source, size in sorted(self.sources[name].items())},
            "licences": {text: dict(size) for text, size in sorted(self.licences[name].items())},
            "samples": dict(self.samples[name]),
        }

    def _steps(self, name: str, pages: int) -> list[dict[str, Any]]:
        """Return what was left behind each step and what it dropped; check that both agree."""
        rows, left = [], pages
        num_bytes = self.counts.get(f"{name}/in/bytes", 0)
        for step in self.steps[name]:
            drops: dict[str, Counter[str]] = defaultdict(Counter)
            for (at, reason, _), size in self.dropped[name].items():
                if at == step:
                    drops[reason].update(size)
            left -= sum(size["documents"] for size in drops.values())
            counted = self.counts.get(f"{name}/{step}/documents", 0)
            if step in ("exact", "near"):
                num_bytes -= sum(size["bytes"] for size in drops.values())
            elif counted != left:
                raise DataError(
                    f"category {name!r}: {counted} documents came out of {step!r}, but {left} are "
                    "accounted for; delete the stage's folder and run it again"
                )
            else:
                num_bytes = self.counts.get(f"{name}/{step}/bytes", 0)
            rows.append(
                {
                    "step": step,
                    "documents": left,
                    "bytes": num_bytes,
                    "dropped": {reason: dict(size) for reason, size in sorted(drops.items())},
                }
            )
        if rows and num_bytes != self.kept[name]["bytes"]:
            raise DataError(
                f"category {name!r}: {num_bytes} bytes came through, but "
                f"{self.kept[name]['bytes']} were written; delete the stage's folder and run again"
            )
        return rows

    def _languages(self, name: str) -> dict[str, Any]:
        """Return for each language what was kept, and what was dropped by reason."""
        drops: dict[str, Counter[str]] = defaultdict(Counter)
        for (_, reason, language), size in self.dropped[name].items():
            drops[language][reason] += size["documents"]
        found = self.languages[name].keys() | drops.keys()
        ordered = sorted(found, key=lambda code: (-self.languages[name][code]["documents"], code))
        return {
            code: {
                **{key: self.languages[name][code][key] for key in ("documents", "bytes")},
                "dropped": dict(drops[code].most_common()),
            }
            for code in ordered
        }


def describe_losses(table: dict[str, Any]) -> str:
    """Say in a few words why a category kept nothing."""
    if not table["documents_in"]:
        return "its sources hold no page"
    reasons = ", ".join(f"{count} {reason}" for reason, count in table["dropped"].items())
    return f"all of its {table['documents_in']} pages were dropped: {reasons}"


def stage_metrics(categories: dict[str, Any]) -> dict[str, float]:
    """Flatten the account into the stage's summary."""
    metrics = Counter[str](
        {
            key: sum(table[key] for table in categories.values())
            for key in ("documents_in", "documents_kept", "characters")
        }
    )
    for name, table in categories.items():
        metrics[f"kept.{name}"] += table["documents_kept"]
        metrics[f"characters.{name}"] += table["characters"]
        for tier, size in table["tiers"].items():
            if tier != name:
                metrics[f"kept.{tier}"] += size["documents"]
                metrics[f"characters.{tier}"] += size["characters"]
    return {name: float(value) for name, value in metrics.items()}
