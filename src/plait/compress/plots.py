"""Pictures of scores, one SVG file each, drawn by matplotlib.

The sorted scores of a layer say how much width it has to spare: a curve that falls steeply has few
channels that matter. Without matplotlib the scores are written all the same.
"""

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from plait.compress.scores import Removal, Scores
from plait.core.artifact import write_atomic
from plait.core.figure import SERIES, draw, standalone, to_svg
from plait.model.spec import ModelSpec

logger = logging.getLogger(__name__)

MAX_POINTS = 200


def write_plots(scores: Scores, folder: Path) -> None:
    """Draw every kind of score there is into `folder/*.svg`."""
    if find_spec("matplotlib") is None:
        logger.warning("no plots of scores: they need pip install 'plait[eval]'")
        return
    heads = {layer: score.norm(dim=1) for layer, score in scores.mamba.items()}
    channels = {layer: score.norm(dim=0) for layer, score in scores.mamba.items()}
    curves: dict[str, tuple[Mapping[int, Tensor], str]] = {
        "embedding": (dict(enumerate(scores.embedding.values())), "embedding channels"),
        "feed_forward": (scores.feed_forward, "feed-forward channels"),
        "mamba_heads": (heads, "Mamba heads"),
        "mamba_channels": (channels, "channels of Mamba heads"),
        "attention": (scores.attention, "attention heads"),
    }
    figures = {
        name: falling_curves(name, table, scores.spec.num_layers, label)
        for name, (table, label) in curves.items()
        if table
    }
    if scores.removals:
        metric = scores.facts.get("depth_metric", "harm")
        figures["depth"] = removal_curve("depth", scores.removals, scores.spec, metric)
    for name, svg in figures.items():
        write_atomic(folder / f"{name}.svg", standalone(svg))


def falling_curves(name: str, table: Mapping[int, Tensor], num_layers: int, label: str) -> str:
    """Draw the scores of each layer from the greatest down; the deeper a layer, the darker."""
    with draw() as figure:
        axes = figure.subplots()
        for layer, score in table.items():
            falling = score.sort(descending=True).values
            step = -(-len(falling) // MAX_POINTS)
            places = torch.arange(0, len(falling), step)
            axes.plot(
                ((places + 1) / len(falling)).tolist(),
                (falling[places] / falling[0].clamp(min=1e-30)).tolist(),
                color=SERIES[0],
                alpha=(layer + 1) / (num_layers + 1),
                linewidth=1.0,
            )
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(f"share of {label} kept")
        axes.set_ylabel("score / greatest")
        return to_svg(figure, name)


def removal_curve(name: str, removals: tuple[Removal, ...], spec: ModelSpec, metric: str) -> str:
    """Draw what has been lost after each removal, the removed layer below it."""
    with draw() as figure:
        axes = figure.subplots()
        places = range(1, len(removals) + 1)
        harms = [removal.harms[removal.layer] for removal in removals]
        axes.plot(places, harms, color=SERIES[0], marker="o", markersize=3)
        labels = [f"{removal.layer}\n{spec.pattern[removal.layer]}" for removal in removals]
        axes.set_xticks(places, labels)
        axes.set_xlabel("layer removed, in order")
        axes.set_ylabel(f"logits, {metric} to the parent")
        axes.set_ylim(bottom=0)
        return to_svg(figure, name)
