"""`plait info`: what a model is and what it needs, read from its config alone."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from plait.core.config import nearest
from plait.core.errors import ConfigError
from plait.core.run_folder import model_directory
from plait.model.count import describe
from plait.model.hf_config import read_spec
from plait.model.spec import PRESETS, ModelSpec


def show(name: str) -> None:
    """Print shape, counts and memory of a preset, model directory, run folder or hub id."""
    spec = spec_of(name)
    table = Table(title=Text(name), show_header=False)
    for row in describe(spec):
        table.add_row(*row)
    Console().print(table)


def spec_of(name: str) -> ModelSpec:
    """Return the shape of a preset, model directory, run folder or hub id."""
    if name in PRESETS:
        return ModelSpec.preset(name)
    path = Path(name)
    if "/" not in name and not path.exists():
        raise ConfigError(f"{name}: neither a preset nor a path; {nearest(name, list(PRESETS))}")
    return read_spec(model_directory(path) if path.exists() else name)
