"""The stage `synth`, with the documents, languages, syntax and vectors that its room has not."""

import ast
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.core.config import nearest
from plait.core.errors import ConfigError
from plait.core.recipe import inputs_of
from plait.data.documents import document_files, read_documents
from plait.data.tokenizer import Tokenizer
from plait.synth.chunks import CountTokens, estimate_tokens
from plait.synth.rows import count_lines
from plait.synth.settings import Sources, SynthSettings
from plait.synth.stage import AnySynthSettings, write

__all__ = ["AnySynthSettings", "run"]


def run(settings: SynthSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Write what the settings' generator makes of all `documents` and the user's files."""
    return write(settings, sources_of(settings, inputs, out / "cache"), out)


def sources_of(settings: SynthSettings, inputs: Mapping[str, Path], cache: Path) -> Sources:
    """Return what a generator uses of other rooms; tokens are estimated without a `tokenizer`."""
    folders = inputs_of(inputs, "documents")
    return Sources(
        documents=lambda: read_documents(_files(folders, settings.categories)),
        num_documents=lambda: count_lines(_files(folders, settings.categories)),
        num_tokens=_counter(inputs.get("tokenizer")),
        language_of=_language_of,
        parses=_parses,
        embed=_embed,
        cache=cache,
    )


def _files(folders: list[Path], categories: tuple[str, ...]) -> list[Path]:
    """Return the files of training documents of folders, category by category."""
    files = document_files(folders, "train") if folders else {}
    for name in categories:
        if name not in files:
            raise ConfigError(
                f"categories: {', '.join(map(str, folders))}: no documents of category {name!r}; "
                + nearest(name, list(files))
            )
    chosen = (found for name, found in files.items() if not categories or name in categories)
    return [file for found in chosen for file in found]


def _counter(tokenizer: Path | None) -> CountTokens:
    if tokenizer is None:
        return estimate_tokens
    encode = Tokenizer.from_directory(tokenizer).encode_plain
    return lambda text: len(encode(text))


def _language_of(text: str) -> str:
    from plait.data.language import identify

    return identify(text).code


def _parses(language: str, code: str) -> bool | None:
    if language != "python":
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the compiler thinks of generated code
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _embed(texts: Any, model: str | None) -> Any:
    from plait.data.embed import embed_texts

    return embed_texts(texts, model)
