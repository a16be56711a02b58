"""What the report shows of a search for a child: what was ranked, and the best trade-offs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from plait.core.figure import INK, SERIES, draw, legend, to_svg
from plait.core.sizes import format_bytes
from plait.eval.read import StageRecord

NUM_ROWS = 30
TERMS = ("weights", "kv", "ssm", "conv", "activations", "fixed", "total")


class SearchView(NamedTuple):
    """A search as the page shows it."""

    name: str
    sentence: str
    figure: str
    rows: list[dict[str, Any]]
    """Parent first, then candidates by distance; sizes as text."""
    num_left_out: int


def search_view(stage: StageRecord) -> SearchView | None:
    """Return what to show of a stage, None if it has searched nothing."""
    found = stage.read_json("candidates.json")
    if not found.get("ranked"):
        return None
    ranked, finalists = found["ranked"], found["finalists"]
    work = found["workload"]
    sentence = (
        f"{found['num_fitting']:,} children fit {format_bytes(found['budget_bytes'])} at "
        f"{work['context_tokens']:,} tokens, batch {work['batch']}; {len(ranked):,} that could not "
        "grow by a step and still fit were compared with the parent, "
        f"{sum(each['healed_kl'] is not None for each in ranked)} after a short distillation. "
        f"Chosen: {finalists[0]}."
    )
    parent = {"name": "parent", "kl": 0.0, "healed_kl": None, "role": "parent"} | found["parent"]
    rows = [_row(parent)] + [
        _row(each | {"role": _role(each["name"], finalists)}) for each in ranked[:NUM_ROWS]
    ]
    figure = _figure(stage.name, ranked, finalists, found["hardware"]["name"])
    return SearchView(stage.name, sentence, figure, rows, max(0, len(ranked) - NUM_ROWS))


def _role(name: str, finalists: Sequence[str]) -> str:
    if name == finalists[0]:
        return "chosen"
    return "finalist" if name in finalists else ""


def _row(each: Mapping[str, Any]) -> dict[str, Any]:
    return dict(each) | {"sizes": [format_bytes(each["memory"][term]) for term in TERMS]}


def _figure(
    stage: str, ranked: Sequence[Mapping[str, Any]], finalists: Sequence[str], hardware: str
) -> str:
    """Draw distance over speed: what lies below and to the right is better."""
    with draw() as figure:
        axes = figure.subplots()
        _dots(axes, list(ranked), "kl", "as cut", SERIES[0])
        healed = [each for each in ranked if each["healed_kl"] is not None]
        _dots(axes, healed, "healed_kl", "after healing", SERIES[1])
        for each in healed:
            ends = (each["healed_kl"], each["kl"])
            axes.plot([each["tokens_per_s"]] * 2, ends, color=SERIES[1], linewidth=0.8)
        [chosen] = [each for each in ranked if each["name"] == finalists[0]]
        final = chosen["kl"] if chosen["healed_kl"] is None else chosen["healed_kl"]
        axes.plot(
            [chosen["tokens_per_s"]],
            [final],
            marker="o",
            markersize=9,
            markerfacecolor="none",
            markeredgecolor=INK,
            linestyle="none",
            label="chosen",
        )
        axes.set_yscale("log")
        axes.set_xlabel(f"tokens/s on {hardware}, ceiling")
        axes.set_ylabel("KL to the parent, nats per token")
        legend(figure, axes)
        return to_svg(figure, f"{stage}-pareto")


def _dots(axes: Any, rows: Sequence[Mapping[str, Any]], key: str, label: str, colour: str) -> None:
    if rows:
        speeds = [each["tokens_per_s"] for each in rows]
        axes.scatter(speeds, [each[key] for each in rows], s=12, color=colour, label=label)
