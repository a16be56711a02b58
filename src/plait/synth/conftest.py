"""Sources without other rooms: words for tokens, Python alone for syntax, words for vectors."""

import ast
import zlib

import numpy as np
import pytest

from plait.synth.settings import Sources


def parses(language: str, code: str) -> bool | None:
    if language != "python":
        return None
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def embed(texts, model=None):
    """Return bags of words, hashed: texts that share words are near."""
    vectors = np.zeros((len(texts), 64), np.float32)
    for row, text in zip(vectors, texts, strict=True):
        for word in text.lower().split():
            row[zlib.crc32(word.encode()) % 64] += 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-6)


def language_of(text: str) -> str:
    return "de" if " und " in f" {text} " else "en"


@pytest.fixture
def sources(tmp_path) -> Sources:
    """Sources whose list `documents` a test fills through `replace`."""
    return Sources(
        documents=lambda: iter(()),
        num_documents=lambda: 0,
        num_tokens=lambda text: len(text.split()),
        language_of=language_of,
        parses=parses,
        embed=embed,
        cache=tmp_path / "cache",
    )
