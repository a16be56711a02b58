"""`plait info`: what a model is and what it needs, read from its config alone."""

from rich.console import Console
from rich.table import Table

from plait.model.count import describe
from plait.model.hf import read_spec
from plait.model.spec import PRESETS, ModelSpec


def show(name: str) -> None:
    """Print shape, counts and memory of a preset, model directory, run folder or hub id."""
    spec = ModelSpec.preset(name) if name in PRESETS else read_spec(name)
    table = Table(title=name, show_header=False)
    for row in describe(spec):
        table.add_row(*row)
    Console().print(table)
