"""report.html of a curation: the funnel as a picture, languages, licences, samples side by side.

One self-contained page without script, made from the account alone (`funnel`); texts from pages are
escaped by the template.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from plait.core.artifact import write_atomic
from plait.core.sizes import format_bytes

_NUM_REASONS = 4


def write_report(
    out: Path, table: dict[str, Any], contamination: dict[str, Any] | None = None
) -> Path:
    """Write `out`/report.html and return its path.

    `table` is what `Funnel.table` returns, `contamination` what `Removals.table` does.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["size"] = format_bytes
    environment.filters["share"] = lambda value: f"{value:.1%}"
    environment.filters["count"] = lambda value: f"{value:,}"
    source = Path(__file__).with_name("curate_page.html").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        title=out.resolve().name,
        categories={name: _view(category) for name, category in table.items()},
        total=_totals(table),
        languages=_languages(table),
        licences=_licences(table),
        contamination=contamination,
    )
    write_atomic(out / "report.html", page)
    return out / "report.html"


def _view(category: dict[str, Any]) -> dict[str, Any]:
    """Add to a category the bars of its funnel and its samples in pairs."""
    pages, size = max(category["documents_in"], 1), max(category["bytes_in"], 1)
    start = {
        "step": "in",
        "documents": category["documents_in"],
        "bytes": category["bytes_in"],
        "dropped": {},
    }
    bars = [
        row
        | {
            "width": 100 * row["documents"] / pages,
            "byte_width": 100 * row["bytes"] / size,
            "reasons": sorted(
                ((reason, lost["documents"]) for reason, lost in row["dropped"].items()),
                key=lambda pair: (-pair[1], pair[0]),
            ),
        }
        for row in [start, *category["steps"]]
    ]
    samples = dict(category["samples"])
    kept = samples.pop("kept", [])
    dropped = [
        (reason, sample)
        for reason in sorted(samples, key=lambda r: -category["dropped"].get(r, 0))[:_NUM_REASONS]
        for sample in samples[reason][:1]
    ]
    return category | {"bars": bars, "kept_samples": kept, "dropped_samples": dropped}


def _totals(table: dict[str, Any]) -> dict[str, int]:
    keys = ("documents_in", "bytes_in", "documents_kept", "documents_dropped", "bytes")
    return {key: sum(category[key] for category in table.values()) for key in keys}


def _languages(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Sum the languages over categories."""
    documents, sizes, drops = Counter[str](), Counter[str](), dict[str, Counter[str]]()
    for category in table.values():
        for code, row in category["languages"].items():
            documents[code] += row["documents"]
            sizes[code] += row["bytes"]
            drops.setdefault(code, Counter()).update(row["dropped"])
    return [
        {
            "code": code,
            "documents": documents[code],
            "bytes": sizes[code],
            "num_dropped": drops[code].total(),
            "reasons": drops[code].most_common(),
        }
        for code in sorted(drops, key=lambda code: (-documents[code], code))
    ]


def _licences(table: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Return each licence with its documents and characters, the largest first."""
    documents, characters = Counter[str](), Counter[str]()
    for category in table.values():
        for licence, size in category["licences"].items():
            documents[licence] += size["documents"]
            characters[licence] += size["characters"]
    return [(name, documents[name], count) for name, count in characters.most_common()]
