"""How finely a tokenizer cuts each language, and proof that nothing is lost by it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.core.errors import DataError
from plait.data.documents import read_documents
from plait.data.tokenizer import Tokenizer

FERTILITY_FILE = "fertility.json"
CHARACTERS_PER_LANGUAGE = 1_000_000
UNKNOWN = "unknown"

WITHOUT_SPACES = {"zh", "ja", "th"}
"""Languages that do not part words: tokens per word would be tokens per clause."""

_WORD = re.compile(r"\w+")


class Fertility:
    """Sums of what texts of one language are and become."""

    def __init__(self) -> None:
        self.documents = self.characters = self.bytes = self.words = self.tokens = 0

    def table(self, language: str) -> dict[str, Any]:
        """Return the sums and their ratios; no tokens per word where words are not parted."""
        parted = language not in WITHOUT_SPACES and self.words > 0
        return {
            **vars(self),
            "tokens_per_word": self.tokens / self.words if parted else None,
            "characters_per_token": self.characters / self.tokens,
            "bytes_per_token": self.bytes / self.tokens,
        }


def measure(tokenizer: Tokenizer, files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Return a table by language (metadata `language`) of the documents in files.

    Of each language the first million characters are read, the last document whole.
    Raises: DataError naming a document that does not come back from its tokens as it was.
    """
    return measure_documents(tokenizer, read_documents(files))


def measure_documents(
    tokenizer: Tokenizer, documents: Iterable[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Do what `measure` does with documents at hand."""
    sums: dict[str, Fertility] = {}
    for document in documents:
        language = str((document.get("metadata") or {}).get("language") or UNKNOWN)
        found = sums.setdefault(language, Fertility())
        text = document["text"]
        if not text or found.characters >= CHARACTERS_PER_LANGUAGE:
            continue
        ids = tokenizer.encode_plain(text)
        if tokenizer.decode(ids) != text:
            raise DataError(
                f"document {document.get('id')!r} ({language}) does not come back from its tokens "
                "as it was: the tokenizer must not be used"
            )
        found.documents += 1
        found.characters += len(text)
        found.bytes += len(text.encode())
        found.words += sum(1 for _ in _WORD.finditer(text))
        found.tokens += len(ids)
    return {name: found.table(name) for name, found in sorted(sums.items()) if found.tokens}
