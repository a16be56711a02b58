"""The stage `student`, with the language model that its room has not."""

from pathlib import Path

from plait.cli.asking import open_asks
from plait.data import student_stage
from plait.data.student_stage import StudentSettings

__all__ = ["StudentSettings", "run"]


def run(settings: StudentSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Label texts and train a student on them; see `plait.data.student_stage`."""
    return student_stage.run(settings, inputs, out, open_asks(settings.endpoints, out / "cache"))
