"""What the report shows of alignment: held-out scores over steps, over rounds, over mixtures."""

import re
from typing import NamedTuple

from plait.eval.plots import Curve, Figure, curves_over
from plait.eval.read import StageRecord

_ROUND = re.compile(r"held_out\.(reward\.\w+)\.round_(\d+)")
_SCORES = re.compile(r"(reward|gold)\.(\w+)")


class AlignmentRow(NamedTuple):
    """One held-out score before and after a stage."""

    stage: str
    score: str
    before: float | None
    """None where there was nothing to score before."""
    after: float


def alignment_rows(stage: StageRecord) -> list[AlignmentRow]:
    """Return the held-out scores of a stage of alignment; none of any other stage."""
    metrics = stage.manifest.get("metrics", {})
    if stage.kind == "grpo":
        return [
            AlignmentRow(stage.name, _words(name), metrics.get(f"before.{name}"), value)
            for key, value in metrics.items()
            if key.startswith("after.") and _SCORES.fullmatch(name := key.removeprefix("after."))
        ]
    if stage.kind == "dpo":
        curves = _rounds(stage)
        return [
            AlignmentRow(
                stage.name, f"{_words(name)}, {len(values) - 1} rounds", *values[:: len(values) - 1]
            )
            for name, values in curves.items()
            if len(values) > 1
        ]
    if stage.kind == "reward" and "held_out.accuracy" in metrics:
        accuracy = metrics["held_out.accuracy"]
        return [AlignmentRow(stage.name, "pairs told apart", None, accuracy)]
    if stage.kind == "merge" and "kept" in metrics:
        text = f"kept of the better parent, alpha {metrics['alpha']:g}"
        return [AlignmentRow(stage.name, text, None, metrics["kept"])]
    return []


def alignment_figures(stage: StageRecord) -> list[Figure]:
    """Return the curves of a stage of alignment."""
    if stage.kind == "grpo":
        return _over_steps(stage)
    if stage.kind == "dpo":
        return _over_rounds(stage)
    if stage.kind == "merge":
        return _over_alpha(stage)
    return []


def _over_steps(stage: StageRecord) -> list[Figure]:
    """Draw reward and gold score together: where one rises and the other falls, it is exploited."""
    scores = stage.evaluations("eval.")
    steps = sorted(scores)
    if len(steps) < 3:
        return []
    panels: dict[str, list[Curve]] = {}
    for name in scores[steps[0]]:
        if match := _SCORES.fullmatch(name):
            values = [scores[step].get(name, float("nan")) for step in steps]
            panels.setdefault(match[1], []).append(Curve(match[2].replace("_", " "), values))
    chosen = stage.manifest.get("metrics", {}).get("chosen_step")
    svg = curves_over(f"{stage.name}-scores", steps, [*panels.items()], "optimizer steps", chosen)
    text = f"{stage.name}: {' and '.join(panels)} on held-out prompts."
    if chosen is not None:
        text += f" Dotted: step {chosen:g}, chosen by other held-out prompts."
    return [Figure(svg, text)]


def _over_rounds(stage: StageRecord) -> list[Figure]:
    curves = [Curve(_words(name), values) for name, values in _rounds(stage).items()]
    if not curves:
        return []
    rounds = range(len(curves[0].values))
    svg = curves_over(f"{stage.name}-rounds", rounds, [("success", curves)], "rounds of pairs")
    return [Figure(svg, f"{stage.name}: success on held-out tasks after each round.")]


def _over_alpha(stage: StageRecord) -> list[Figure]:
    found = stage.read_json("sweep.json")
    points = found.get("points", [])
    if len(points) < 3:
        return []
    curves = [
        Curve(name.replace("_", " "), [point["scores"][name] for point in points])
        for name in points[0]["scores"]
    ]
    kept = Curve("kept, worst task", [point["kept"] for point in points], role="whole")
    alphas = [point["alpha"] for point in points]
    panel = ("score", [*curves, kept])
    svg = curves_over(f"{stage.name}-sweep", alphas, [panel], "share of the other", found["chosen"])
    text = f"{stage.name}: held-out scores between the parents. Dotted: chosen by other prompts."
    return [Figure(svg, text)]


def _rounds(stage: StageRecord) -> dict[str, list[float]]:
    """Return the scores after each round by name, from round 0 on."""
    found: dict[str, dict[int, float]] = {}
    for key, value in stage.manifest.get("metrics", {}).items():
        if match := _ROUND.fullmatch(key):
            found.setdefault(match[1], {})[int(match[2])] = value
    return {name: [values[n] for n in sorted(values)] for name, values in found.items()}


def _words(name: str) -> str:
    kind, _, way = name.partition(".")
    return f"{kind}, {'thinking off' if way == 'no_think' else 'thinking on'}"
