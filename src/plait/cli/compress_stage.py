"""The stage `compress`, with the text that its room cannot read itself."""

from pathlib import Path

from plait.cli.text import text_source
from plait.compress.stage import CompressSettings, compress
from plait.core.run_folder import model_directory

__all__ = ["CompressSettings", "run"]


def run(settings: CompressSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Search for the best child of `inputs["model"]` in a budget and write it to `out/model`."""
    tokenizer_from = model_directory(inputs["model"])
    source = text_source(inputs, tokenizer_from, settings.conversation_share)
    return compress(settings, inputs, out, source)
