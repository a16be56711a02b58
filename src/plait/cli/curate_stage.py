"""The stage `curate`, with the language models that its room has not."""

from pathlib import Path

from plait.cli.asking import open_asks
from plait.data import curate
from plait.data.curate_settings import CurateSettings

__all__ = ["CurateSettings", "run"]


def run(settings: CurateSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Curate; see `plait.data.curate`."""
    return curate.run(settings, inputs, out, open_asks(settings.endpoints, out / "cache"))
