"""Where a category's pages may come from, as a recipe says it.

    [[categories.maths.debian]]
    packages = ["gap-doc", "python3.11-doc|python3.13-doc"]
    pages = ["*/doc/ref/*.html"]

Five kinds: `debian` packages, `debian_code` source packages, what `installed` Python packages
carry, `warc` files and plain `files`. Patterns are those of fnmatch: `*` also matches `/`.
"""

import glob
import re
from pathlib import Path

from pydantic import Field, field_validator

from plait.core.config import Settings
from plait.core.errors import ConfigError

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*(\|[a-z0-9][a-z0-9+.-]*)*")


class InstalledSource(Settings):
    """Text and code that the Python interpreter and the installed packages carry."""

    pages: tuple[str, ...] = (
        "site-packages/*.dist-info/METADATA",
        "stdlib/pydoc_data/topics.py",
        "*.html",
        "*.md",
        "*.rst",
        "*.txt",
    )
    """Patterns on `stdlib/...` and `site-packages/...`. Of a METADATA file the long description is
    taken, of `topics.py` each help topic."""
    exclude: tuple[str, ...] = (
        "*[Ll][Ii][Cc][Ee][Nn][CcSs][Ee]*",
        "*[Cc][Oo][Pp][Yy]*",
        "*[Nn][Oo][Tt][Ii][Cc][Ee]*",
        "*/AUTHORS*",
        "*/CMakeLists.txt",
        "*/top_level.txt",
        "*/entry_points.txt",
        "*/SOURCES.txt",
        "*require*.txt",
        "*/stoplists/*",
        "stdlib/test/*",
        "stdlib/*/test/*",
        "stdlib/*/tests/*",
    )
    """Patterns of what is left out: licence texts and files that are lists, not prose."""
    max_pages: int | None = Field(default=None, ge=1)
    """Pages kept of this source, chosen by hash; None keeps all."""


class DebianSource(Settings):
    """Documentation pages of Debian packages, downloaded and unpacked without installing."""

    packages: tuple[str, ...] = Field(min_length=1)
    """Package names; `a|b` takes the first that the system's apt knows."""
    pages: tuple[str, ...] = ("*.html", "*.htm")
    """Patterns on the path inside the package, such as `usr/share/doc/x/html/index.html`."""
    exclude: tuple[str, ...] = ()
    """Patterns of what is left out."""
    max_pages: int | None = Field(default=None, ge=1)
    """Pages kept of each package, chosen by hash; None keeps all."""
    fallback: InstalledSource | None = None
    """What to take, with a warning, where apt is absent or a download fails; None is an error."""

    @field_validator("packages")
    @classmethod
    def _names(cls, packages: tuple[str, ...]) -> tuple[str, ...]:
        return _package_names(packages)


class DebianCodeSource(Settings):
    """Files of Debian source packages, as their authors released them.

    Every document carries the licence that the package's machine-readable copyright file states for
    it, or what the licence files of the source tree say.
    """

    packages: tuple[str, ...] = Field(min_length=1)
    """Names of source packages."""
    pages: tuple[str, ...] = ("*",)
    """Patterns on the path inside the source tree, such as `src/main.c`."""
    exclude: tuple[str, ...] = ()
    """Patterns of what is left out."""
    max_pages: int | None = Field(default=None, ge=1)
    """Files kept of each package, chosen by hash; None keeps all."""

    @field_validator("packages")
    @classmethod
    def _names(cls, packages: tuple[str, ...]) -> tuple[str, ...]:
        return _package_names(packages)


class WarcSource(Settings):
    """Crawled pages in the user's own WARC files."""

    paths: tuple[str, ...] = Field(min_length=1)
    """Paths or glob patterns (`**` crosses folders) of .warc or .warc.gz files."""
    licence: str | None = None
    """Noted in each document's metadata."""


class FilesSource(Settings):
    """The user's own HTML, Markdown, text or source files, one document each."""

    paths: tuple[str, ...] = Field(min_length=1)
    """Paths or glob patterns (`**` crosses folders)."""
    licence: str | None = None
    """Noted in each document's metadata."""
    max_pages: int | None = Field(default=None, ge=1)
    """Files kept of this source, chosen by hash; None keeps all."""


def matching_files(patterns: tuple[str, ...], where: str) -> list[Path]:
    """Return the files that patterns match, in order, each once.

    Raises: ConfigError naming the key, `where`, and the pattern that matches nothing.
    """
    found = []
    for pattern in patterns:
        paths = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
        files = [Path(path) for path in paths if Path(path).is_file()]
        if not files:
            raise ConfigError(f"{where}: no file matches {pattern!r} (from {Path.cwd()})")
        found += files
    return list(dict.fromkeys(found))


def _package_names(packages: tuple[str, ...]) -> tuple[str, ...]:
    wrong = [name for name in packages if not _PACKAGE.fullmatch(name)]
    if wrong:
        raise ValueError(f"not a Debian package name: {wrong[0]!r}")
    return packages
