"""The figures of the report, as SVG text.

Each function takes plain numbers and returns one figure. Text stays text and colours are written
as variables of the page (`var(--series-1)`), so a figure takes the page's font and follows it from
light to dark. The same numbers give the same bytes.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from plait.core.figure import INK, SERIES, colours, draw, legend, to_svg

Numbers = Sequence[int | float]

MAX_POINTS = 120


class Curve(NamedTuple):
    """A named line of points, with standard errors if there are any."""

    name: str
    values: Numbers
    errors: Numbers | None = None
    role: Literal["part", "whole", "reference"] = "part"
    """Parts have colours of their own; the whole and what to compare with it are drawn in ink."""


class Figure(NamedTuple):
    """An SVG with the sentence under it."""

    svg: str
    caption: str


def training_curves(
    name: str,
    tokens: Numbers,
    loss: Numbers,
    rate: Numbers,
    switches: Numbers = (),
) -> str:
    """Draw loss per token (nats) over the learning rate, `switches` (tokens) as vertical lines."""
    with draw() as figure:
        upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1])
        bins = _bins(tokens, loss)
        if len(loss) > len(bins.x):
            upper.fill_between(
                bins.x, bins.low, bins.high, color=SERIES[0], alpha=0.25, linewidth=0
            )
        upper.plot(bins.x, bins.mean, color=SERIES[0])
        upper.set_ylabel("loss, nats per token")
        lower.plot(bins.x, _bins(tokens, rate).mean, color=SERIES[1])
        lower.set_ylim(0, max(rate) * 1.1 or 1)
        lower.set_ylabel("rate")
        lower.set_xlabel("tokens")
        for axes in (upper, lower):
            for switch in switches:
                axes.axvline(switch, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
        if switches:
            _note_switches(upper, switches, tokens[-1])
        _count_axis(lower.xaxis)
        return to_svg(figure, name)


def curves_over_tokens(name: str, tokens: Numbers, curves: Sequence[Curve], label: str) -> str:
    """Draw one line per curve over training tokens."""
    with draw() as figure:
        axes = figure.subplots()
        for curve, colour in zip(curves, colours(len(curves)), strict=True):
            axes.plot(
                tokens, curve.values, color=colour, label=curve.name, marker="o", markersize=2.5
            )
        axes.set_xlabel("tokens")
        axes.set_ylabel(label)
        _count_axis(axes.xaxis)
        legend(figure, axes)
        return to_svg(figure, name)


def curves_over(
    name: str,
    x: Numbers,
    panels: Sequence[tuple[str, Sequence[Curve]]],
    label: str,
    mark: int | float | None = None,
) -> str:
    """Draw panels (label and curves) above each other over one axis, with a line at `mark`.

    A curve has the same colour in every panel in which its name occurs.
    """
    names = list(dict.fromkeys(curve.name for _, curves in panels for curve in curves))
    with draw(height=1.2 + 1.6 * len(panels)) as figure:
        rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        colour_of = dict(zip(names, colours(len(names)), strict=True))
        for axes, (what, curves) in zip(rows, panels, strict=True):
            for curve in curves:
                style = {"color": colour_of[curve.name], "marker": "o", "markersize": 2.5}
                if curve.role != "part":
                    style["color"] = INK
                axes.plot(x, curve.values, label=curve.name, **style)
            if mark is not None:
                axes.axvline(mark, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
            axes.set_ylabel(what)
        rows[-1].set_xlabel(label)
        legend(figure, max(rows, key=lambda axes: len(axes.lines)))
        return to_svg(figure, name)


def curves_over_budget(
    name: str, budgets: Sequence[str], curves: Sequence[Curve], label: str
) -> str:
    """Draw shares in [0, 1] over thinking budgets; errors as bars."""
    with draw() as figure:
        axes = figure.subplots()
        for curve, style in zip(curves, _line_styles(curves), strict=True):
            axes.errorbar(
                range(len(budgets)),
                curve.values,
                yerr=curve.errors,
                label=curve.name,
                elinewidth=0.9,
                capsize=1.5,
                **style,
            )
        axes.set_xticks(range(len(budgets)), budgets)
        axes.set_xlabel("thinking budget, tokens")
        axes.set_ylim(-0.03, 1.04)
        axes.set_ylabel(label)
        legend(figure, axes)
        return to_svg(figure, name)


def stacked_bars(
    name: str, rows: Sequence[str], parts: Sequence[Curve], label: str, *, share: bool = False
) -> str:
    """Draw one horizontal bar per row, made of parts; as shares of the row's sum if `share`."""
    with draw(height=max(1.6, 0.28 * len(rows) + 1.2)) as figure:
        axes = figure.subplots()
        sums = [sum(part.values[row] for part in parts) or 1.0 for row in range(len(rows))]
        left = [0.0] * len(rows)
        for part, colour in zip(parts, colours(len(parts)), strict=True):
            scale = sums if share else [1.0] * len(rows)
            widths = [value / total for value, total in zip(part.values, scale, strict=True)]
            axes.barh(
                range(len(rows)), widths, left=left, height=0.66, color=colour, label=part.name
            )
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(label)
        if share:
            axes.set_xlim(0, 1)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        legend(figure, axes)
        return to_svg(figure, name)


class _Bins(NamedTuple):
    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def _bins(x: Numbers, y: Numbers) -> _Bins:
    """Average neighbouring points: a calmer line, and a long run does not make a heavy page."""
    width = -(-len(y) // MAX_POINTS)
    groups = [slice(start, start + width) for start in range(0, len(y), width)]
    return _Bins(
        [sum(x[group]) / len(x[group]) for group in groups],
        [sum(y[group]) / len(y[group]) for group in groups],
        [min(y[group]) for group in groups],
        [max(y[group]) for group in groups],
    )


def _line_styles(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    styles: list[dict[str, Any]] = []
    part_colours = iter(colours(len(curves)))
    for curve in curves:
        if curve.role == "reference":
            styles.append({"color": INK, "linestyle": (0, (3, 2)), "linewidth": 1.0})
        elif curve.role == "whole":
            styles.append({"color": INK, "linewidth": 2.2, "marker": "o", "markersize": 3.5})
        else:
            styles.append({"color": next(part_colours), "marker": "o", "markersize": 3})
    return styles


def _count_axis(axis: Any) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(EngFormatter(sep=""))


def _note_switches(axes: Any, switches: Numbers, end: int | float) -> None:
    for number, (start, stop) in enumerate(zip([0.0, *switches], [*switches, end], strict=True)):
        axes.annotate(
            str(number + 1) if number else "phase 1",
            ((start + stop) / 2, 0.97),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="top",
            fontsize=7,
        )
