"""Pages on their way into WARC files: what a source yields, and which of it is taken."""

import fnmatch
import heapq
import mimetypes
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import NamedTuple

from plait.core.seed import mix_seed

_MEDIA_TYPES = {
    ".htm": "text/html",
    ".html": "text/html",
    ".xhtml": "application/xhtml+xml",
    ".md": "text/markdown",
    ".rst": "text/x-rst",
    ".txt": "text/plain",
    ".py": "text/x-python",
    ".pyi": "text/x-python",
    ".js": "text/x-javascript",
    ".ts": "text/x-typescript",
    ".rs": "text/x-rust",
    ".go": "text/x-go",
    ".sh": "text/x-shellscript",
    ".c": "text/x-c",
    ".h": "text/x-c",
    ".cc": "text/x-c++",
    ".cpp": "text/x-c++",
    ".hpp": "text/x-c++",
    ".java": "text/x-java",
}


class Page(NamedTuple):
    """One page as it was found."""

    url: str
    media_type: str
    body: bytes
    source: str
    """What it came from: `debian:gap-doc=4.12.1-2`."""
    licence: str | None


def media_type_of(name: str) -> str:
    """Return the media type that a file's name promises."""
    suffix = PurePath(name).suffix.lower()
    return _MEDIA_TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "text/plain"


class Pattern:
    """Names that match one of `include` and none of `exclude` (fnmatch; `*` also matches `/`)."""

    def __init__(self, include: Iterable[str], exclude: Iterable[str] = ()) -> None:
        self.include, self.exclude = _any_of(include), _any_of(exclude)

    def __contains__(self, name: str) -> bool:
        return bool(self.include.fullmatch(name)) and not self.exclude.fullmatch(name)


def sample(pages: Iterable[Page], max_pages: int | None, seed: int) -> Iterator[Page]:
    """Yield `max_pages` pages chosen by a hash of their URL, in order of URL; all if None.

    At most `max_pages` bodies are held, so a large package costs no more than its sample.
    """
    if max_pages is not None:
        pages = heapq.nsmallest(max_pages, pages, key=lambda page: mix_seed(seed, page.url))
    yield from sorted(pages, key=lambda page: page.url)


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns) or r"(?!)")
