"""The stage `distill`, with the text that its room cannot read itself."""

from pathlib import Path

from plait.cli.text import text_source
from plait.compress.distill_stage import DistillSettings, distill
from plait.core.run_folder import model_directory

__all__ = ["DistillSettings", "run"]


def run(settings: DistillSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Train `inputs["student"]` on what `inputs["teacher"]` predicts; write `out/model`."""
    tokenizer_from = model_directory(inputs["student"])
    source = text_source(inputs, tokenizer_from, settings.conversation_share)
    return distill(settings, inputs, out, source)
