"""report.html: a whole run on one self-contained page, made from artifact files alone.

Sections appear for what the run holds: training curves for every stage that trained, bits per byte
for every one that was evaluated, the curation funnel, the budget figure, samples. A stage that is
absent or unfinished leaves a note instead. The page needs no network and no script; all text that
is not ours is escaped by the template.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from plait.core.artifact import write_atomic
from plait.core.errors import ConfigError
from plait.eval.alignment import alignment_figures, alignment_rows
from plait.eval.compression import TERMS, search_view
from plait.eval.plots import (
    Curve,
    Figure,
    curves_over_budget,
    curves_over_tokens,
    stacked_bars,
    training_curves,
)
from plait.eval.read import UNKNOWN, StageRecord, read_stage, read_stages

FREE = ".free"
_BITS = "eval.bits_per_byte."
_NUM_REASONS = 6


class Tile(NamedTuple):
    """One number of the headline."""

    label: str
    value: str
    note: str = ""


class Sample(NamedTuple):
    """One question with what the model wrote."""

    setting: str
    answer: Mapping[str, Any]


class EvalView(NamedTuple):
    """What the page shows of one eval stage."""

    name: str
    rows: list[dict[str, Any]]
    families: list[str]
    figures: list[Figure]
    samples: list[Sample]
    num_questions: int
    panel: dict[str, dict[str, float]]
    """Scores of every checkpoint by name and kind of question."""


def write_report(run_directory: Path, names: Collection[str] | None = None) -> Path:
    """Write `run_directory`/report.html from the stage folders in it and return its path.

    With `names`, of these folders alone; the folder of a stage that stands alone gets its own.
    Raises: ConfigError if there is no such folder or no stage in it; PlaitError naming the extra
    to install if matplotlib is missing.
    """
    if not run_directory.is_dir():
        raise ConfigError(f"{run_directory}: no such run folder; give one such as runs/tiny")
    if read_stage(run_directory).kind != UNKNOWN:
        return write_stage_report(run_directory)
    if not read_stages(run_directory):
        raise ConfigError(f"{run_directory}: holds no stage; give a run folder such as runs/tiny")
    page = run_directory / "report.html"
    write_atomic(page, render(run_directory.resolve().name, read_stages(run_directory, names)))
    return page


def write_stage_report(folder: Path) -> Path:
    """Write `folder`/report.html of a stage folder that stands alone and return its path."""
    page = folder / "report.html"
    write_atomic(page, render(folder.resolve().name, [read_stage(folder)]))
    return page


def render(title: str, stages: Sequence[StageRecord]) -> str:
    """Return the page for these stages."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["duration"] = duration
    environment.filters["share"] = lambda value: f"{value:.1%}"
    source = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    evals = [view for stage in stages if (view := _eval_view(stage)) is not None]
    return environment.from_string(source).render(
        title=title,
        stages=stages,
        resolved={
            stage.name: json.dumps(stage.settings, indent=2, ensure_ascii=False) for stage in stages
        },
        tiles=_tiles(stages, evals),
        bits=_bits_table(stages),
        written=[(stage.name, funnel) for stage in stages if (funnel := _synthesis(stage))],
        fertilities=[
            (stage.name, table) for stage in stages if (table := stage.read_json("fertility.json"))
        ],
        funnels=[(stage.name, funnel) for stage in stages if (funnel := _categories(stage))],
        funnel_figures=[figure for stage in stages for figure in _funnel_figure(stage)],
        training_figures=[
            figure for stage in stages for figure in _training_figures(stage, stages)
        ],
        evals=evals,
        aligned=[row for stage in stages for row in alignment_rows(stage)],
        alignment_figures=[figure for stage in stages for figure in alignment_figures(stage)],
        searches=[view for stage in stages if (view := search_view(stage)) is not None],
        memory_terms=TERMS,
        machine=_machine(stages),
    )


def duration(seconds: int | float) -> str:
    """Say a time in two units: 3 min 05 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _tiles(stages: Sequence[StageRecord], evals: Sequence[EvalView]) -> list[Tile]:
    """Choose the numbers of the headline: of the last evaluation and of the whole run."""
    tiles = []
    if evals:
        rows = {row["name"]: row for row in evals[-1].rows}
        for name, label in (("think", "thinking on"), ("no_think", "thinking off")):
            if name in rows:
                row = rows[name]
                note = f"± {row['standard_error']:.1%} of {row['num_questions']} questions"
                tiles.append(Tile(f"accuracy, {label}", f"{row['accuracy']:.1%}", note))
        measured = [row["measured"] for row in evals[-1].rows if row["measured"] is not None]
        if measured:
            share = sum(measured) / len(measured)
            tiles.append(Tile("well-formed", f"{share:.1%}", "mean over settings, tags left free"))
    done = [stage.manifest for stage in stages if stage.finished]
    if done:
        wall_s = sum(manifest.get("wall_s", 0.0) for manifest in done)
        peak_gib = max(manifest.get("peak_memory_gib", 0.0) for manifest in done)
        tiles.append(Tile("wall time", duration(wall_s), f"{len(done)} finished stages"))
        tiles.append(Tile("peak memory", f"{peak_gib:.2f} GiB", "resident, largest process"))
    return tiles


def _bits_table(stages: Sequence[StageRecord]) -> list[dict[str, Any]]:
    """Bits per byte by category, first and last evaluation, for each stage that has them."""
    rows = []
    for stage in stages:
        scores = stage.evaluations(_BITS)
        if len(scores) < 2:
            continue
        first, last = scores[min(scores)], scores[max(scores)]
        for category in first.keys() & last.keys():
            rows.append(
                {
                    "stage": stage.name,
                    "category": category,
                    "before": first[category],
                    "after": last[category],
                }
            )
    return sorted(rows, key=lambda row: (row["stage"], row["category"]))


def _training_figures(stage: StageRecord, stages: Sequence[StageRecord]) -> list[Figure]:
    steps = [line for line in stage.training_steps if "tokens" in line and "learning_rate" in line]
    figures = []
    if steps:
        tokens = [line["tokens"] for line in steps]
        ends = _phase_ends(stage, stages)
        switches = [end * tokens[-1] for end in ends if stage.finished and end < 1]
        svg = training_curves(
            f"{stage.name}-loss",
            tokens,
            [line["loss"] for line in steps],
            [line["learning_rate"] for line in steps],
            switches,
        )
        text = f"{stage.name}: loss and learning rate over {len(steps):,} optimizer steps."
        if switches:
            text += " Dotted lines: the blend changes."
        figures.append(Figure(svg, text))
    scores = stage.evaluations(_BITS)
    if len(scores) > 1:
        tokens_at = {0: 0} | {line["step"]: line["tokens"] for line in steps}
        points = [step for step in sorted(scores) if step in tokens_at]
        curves = [
            Curve(category, [scores[step].get(category, float("nan")) for step in points])
            for category in sorted({name for each in scores.values() for name in each})
        ]
        svg = curves_over_tokens(
            f"{stage.name}-bits", [tokens_at[step] for step in points], curves, "bits per byte"
        )
        figures.append(Figure(svg, f"{stage.name}: validation loss by category; lower is better."))
    return figures


def _phase_ends(stage: StageRecord, stages: Sequence[StageRecord]) -> list[float]:
    """Shares of training at which the blend of a pretraining stage changes."""
    if stage.kind != "pretrain":
        return []
    earlier = [other for other in stages if other.kind == "blend" and other.name < stage.name]
    phases = earlier[-1].settings.get("phases", []) if earlier else []
    return [phase["until"] for phase in phases]


def _categories(stage: StageRecord) -> dict[str, Any]:
    return stage.read_json("funnel.json").get("categories", {})


def _synthesis(stage: StageRecord) -> dict[str, Any]:
    return stage.read_json("funnel.json") if stage.kind == "synth" else {}


def _funnel_figure(stage: StageRecord) -> list[Figure]:
    table = _categories(stage)
    if not table:
        return []
    totals: dict[str, int] = {}
    for category in table.values():
        for reason, count in category["dropped"].items():
            totals[reason] = totals.get(reason, 0) + count
    named = sorted(totals, key=lambda reason: (-totals[reason], reason))[:_NUM_REASONS]
    parts = [Curve("kept", [category["documents_kept"] for category in table.values()])]
    parts += [
        Curve(reason, [category["dropped"].get(reason, 0) for category in table.values()])
        for reason in named
    ]
    if len(totals) > len(named):
        rest = [
            sum(count for reason, count in category["dropped"].items() if reason not in named)
            for category in table.values()
        ]
        parts.append(Curve("other reasons", rest))
    svg = stacked_bars(f"{stage.name}-funnel", list(table), parts, "share of pages", share=True)
    return [Figure(svg, f"{stage.name}: what became of the pages of each category.")]


def _eval_view(stage: StageRecord) -> EvalView | None:
    record = stage.read_json("scores.json")
    results = {result["setting"]: result for result in record.get("results", [])}
    served = [result for name, result in results.items() if not name.endswith(FREE)]
    if not served:
        return None
    rows = []
    for result in served:
        free = results.get(result["setting"] + FREE)
        measured = free["well_formed"] if free else None
        rows.append(result | {"name": result["setting"], "measured": measured})
    # From no thinking to all of it, as the figures read.
    rows.sort(key=lambda row: (row["thinking"], row["budget"] is None, row["budget"] or 0))
    return EvalView(
        stage.name,
        rows,
        list(served[0]["families"]),
        _eval_figures(stage.name, rows) + _uncut_figures(stage.name, results, record),
        _samples(stage.read_lines("answers.jsonl")),
        served[0]["num_questions"],
        record.get("panel", {}),
    )


def _uncut_figures(
    stage: str, results: Mapping[str, Any], record: Mapping[str, Any]
) -> list[Figure]:
    """Draw the report's Figure 5: budgets before and after training on traces cut short."""
    before = {result["setting"]: result for result in record.get("uncut", [])}
    names = [name for name in before if name in results and before[name]["thinking"]]
    names.sort(key=lambda name: (before[name]["budget"] is None, before[name]["budget"] or 0))
    if len(names) < 2:
        return []
    ticks = [
        str(before[name]["budget"]) if before[name]["budget"] is not None else "full"
        for name in names
    ]
    figures = []
    for key, label in (("accuracy", "accuracy"), ("well_formed", "well-formed outputs")):
        curves = [
            Curve("before", [before[name][key] for name in names], role="reference"),
            Curve("after", [results[name][key] for name in names], role="whole"),
        ]
        svg = curves_over_budget(f"{stage}-uncut-{key}", ticks, curves, label)
        text = f"{label.capitalize()} before and after training on traces cut short, tags free."
        figures.append(Figure(svg, text))
    return figures


def _eval_figures(stage: str, rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    by_name = {row["name"]: row for row in rows}
    along = [row for row in rows if row["budget"] is not None]
    along += [by_name["think"]] if "think" in by_name else []
    ticks = [str(row["budget"]) if row["budget"] is not None else "full" for row in along]
    figures = []
    if len(along) > 1:
        accuracy = [_curve("all", along, "whole")]
        accuracy += [
            _curve(family, [row["families"][family] for row in along])
            for family in along[0]["families"]
        ]
        if "no_think" in by_name:
            flat = [by_name["no_think"]["accuracy"]] * len(along)
            accuracy.append(Curve("thinking off, all", flat, role="reference"))
        svg = curves_over_budget(f"{stage}-accuracy", ticks, accuracy, "accuracy")
        text = "Accuracy against the thinking budget, by task family; bars are one standard error."
        figures.append(Figure(svg, text))
        formed = [Curve("engine masks think tags", [row["well_formed"] for row in along])]
        if all(row["measured"] is not None for row in along):
            free = [row["measured"] for row in along]
            formed.append(Curve("tags left to the model", free))
        svg = curves_over_budget(f"{stage}-formed", ticks, formed, "well-formed outputs")
        text = "Share of outputs with exactly one closing tag: as served, and as the model would."
        figures.append(Figure(svg, text))
    trace = [row["reasoning_tokens"] for row in rows]
    rest = [row["total_tokens"] - row["reasoning_tokens"] for row in rows]
    parts = [Curve("trace", trace), Curve("closing tag and answer", rest)]
    names = [row["name"].replace("_", " ") for row in rows]
    svg = stacked_bars(f"{stage}-tokens", names, parts, "mean tokens per question")
    figures.append(Figure(svg, "Tokens spent per question."))
    return figures


def _curve(
    name: str, means: Sequence[Mapping[str, Any]], role: Literal["part", "whole"] = "part"
) -> Curve:
    errors = [mean["standard_error"] for mean in means]
    return Curve(name, [mean["accuracy"] for mean in means], errors, role)


def _samples(answers: Sequence[Mapping[str, Any]]) -> list[Sample]:
    """Choose about six answers: each family with thinking, a mistake, one capped, one without."""
    thinking = [answer for answer in answers if answer["setting"] == "think"]
    capped = [
        answer
        for answer in answers
        if answer["setting"].startswith("budget_") and answer["num_reasoning_tokens"] > 0
    ]
    chosen = []
    for family in sorted({answer["family"] for answer in thinking})[:3]:
        chosen += [answer for answer in thinking if answer["family"] == family][:1]
    chosen += [answer for answer in thinking if answer["score"] < 1 and answer not in chosen][:1]
    chosen += [answer for answer in capped if not answer["setting"].endswith(FREE)][:1]
    chosen += [answer for answer in answers if answer["setting"] == "no_think"][:1]
    return [Sample(answer["setting"].replace("_", " "), answer) for answer in chosen]


def _machine(stages: Sequence[StageRecord]) -> dict[str, str]:
    """Versions that made the run, by its last finished stage."""
    manifests = [stage.manifest for stage in stages if stage.finished]
    if not manifests:
        return {}
    last = manifests[-1]
    versions = {"python": last.get("python")} | last.get("versions", {})
    versions["git revision"] = last.get("git_revision")
    return {name: str(version) for name, version in versions.items() if version}
