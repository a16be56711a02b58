"""The stage `decontaminate`, with the judge that its room has not."""

from pathlib import Path

from plait.cli.asking import open_asks
from plait.data import decontaminate_stage
from plait.data.decontaminate_stage import DecontaminateStageSettings

__all__ = ["DecontaminateStageSettings", "run"]


def run(
    settings: DecontaminateStageSettings, inputs: dict[str, Path], out: Path
) -> dict[str, float]:
    """Take benchmarks' questions out; see `plait.data.decontaminate_stage`."""
    asks = open_asks(settings.endpoints, out / "cache")
    return decontaminate_stage.run(settings, inputs, out, asks)
