"""Figures as SVG text, drawn by matplotlib.

Text stays text and colours are written as variables of a page (`var(--series-1)`), so a figure
takes the page's font and follows it from light to dark. The same numbers give the same bytes.
A figure that is a file of its own brings the variables along: `standalone`.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from plait.core.errors import PlaitError

NUM_SERIES = 8

# Colours that stand for variables of the page until the SVG is written.
INK, GRID = "#010101", "#020202"
SERIES = [f"#0{index}0{index}0a" for index in range(NUM_SERIES)]
_VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)"} | {
    colour: f"var(--series-{index + 1})" for index, colour in enumerate(SERIES)
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "figure.constrained_layout.use": True,
}
_SIZE = (4.3, 2.8)

_LIGHT = "#fbfaf7 #23262b #dedbd4 #2a6f97 #c8553d #588157 #b08a2e #7b5ea7 #3a9d9d #b5547f #8d8a83"
_NAMES = ["paper", "ink", "grid", *(f"series-{index + 1}" for index in range(NUM_SERIES))]


@contextmanager
def draw(height: float = _SIZE[1]) -> Iterator[Any]:
    """Yield an empty figure in the house's style, `height` inches high."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise PlaitError(
            "figures need matplotlib: install it with pip install 'plait[eval]'"
        ) from None
    with rc_context(_STYLE):
        yield Figure(figsize=(_SIZE[0], height))


def to_svg(figure: Any, name: str) -> str:
    """Return the figure as an SVG element; its ids begin with `name`."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # Text is drawn by the reader's browser, so what matplotlib's own font lacks is no matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    tag, body = text[text.index("<svg") :].split(">", 1)
    # The page sets the size.
    text = re.sub(r' (width|height)="[^"]*"', "", tag) + ">" + body
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    # Several figures share one page, so their ids must differ.
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)


def colours(number: int) -> list[str]:
    """Return a colour for each of so many series."""
    return [SERIES[index % NUM_SERIES] for index in range(number)]


def legend(figure: Any, axes: Any) -> None:
    """Put the legend above the axes."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=3, handlelength=1.4, columnspacing=1.2
    )


def standalone(svg: str) -> str:
    """Return an SVG element as a file: with colours of its own, on paper."""
    pairs = zip(_NAMES, _LIGHT.split(), strict=True)
    variables = "".join(f"--{name}:{value};" for name, value in pairs)
    style = f"<style>svg{{{variables}background:var(--paper);font-family:sans-serif}}</style>"
    start, end = svg.split(">", 1)
    return f"{start}>{style}{end}"
