"""Everything a user can set about curation: sources, extraction, rules, deduplication, split.

    [categories.maths]
    languages = ["en"]
    [[categories.maths.debian]]
    packages = ["gap-doc", "python3.11-doc|python3.13-doc"]
    pages = ["*/doc/ref/*.html"]

A category draws on any number of sources, each of one of four kinds: `debian` packages, what
`installed` Python packages carry, `warc` files and plain `files`. Patterns are those of fnmatch:
`*` also matches `/`.
"""

import glob
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from plait.core.config import Settings, nearest
from plait.core.errors import ConfigError

# English and the 15 languages of the report, in the codes of ISO 639-1.
LANGUAGES = ("en", "ar", "zh", "da", "nl", "fr", "de", "it", "ja", "ko", "pl", "pt", "ru", "es",
             "sv", "th")  # fmt: skip

_CATEGORY = re.compile(r"[a-z0-9][a-z0-9_-]*")
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
        wrong = [name for name in packages if not _PACKAGE.fullmatch(name)]
        if wrong:
            raise ValueError(f"not a Debian package name: {wrong[0]!r}")
        return packages


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


class ProseRules(Settings):
    """What prose must look like to be kept.

    Words are what blanks separate; in scripts without blanks every letter counts as a word.
    Defaults: Gopher, arXiv 2112.11446, table A1. Manuals need wider limits than web prose.
    """

    min_words: int = Field(default=50, ge=1)
    max_words: int = 100_000
    min_mean_word_characters: float = 3.0
    """Not asked of Chinese, Japanese and Thai."""
    max_mean_word_characters: float = 10.0
    max_symbols_per_word: float = 0.1
    """Of `#`, and of ellipses."""
    max_bullet_lines: float = 0.9
    """Share of lines that start with a bullet."""
    max_ellipsis_lines: float = 0.3
    """Share of lines that end with an ellipsis."""
    min_alphabetic_words: float = 0.8
    """Share of words that hold a letter."""
    max_duplicate_lines: float = 0.3
    max_duplicate_paragraphs: float = 0.3
    max_duplicate_line_characters: float = 0.2
    max_duplicate_paragraph_characters: float = 0.2
    max_top_ngram: dict[int, float] = Field(default={2: 0.20, 3: 0.18, 4: 0.16})
    """n to the largest share of characters in the most frequent n words in a row."""
    max_repeated_ngrams: dict[int, float] = Field(
        default={5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    )
    """n to the largest share of characters in n words in a row that were said before."""


class CodeRules(Settings):
    """What source code must look like to be kept. Defaults: The Stack and OpenCoder."""

    min_characters: int = 100
    max_characters: int = 1_000_000
    max_line_characters: int = 1_000
    max_mean_line_characters: float = 100.0
    min_alphanumeric: float = 0.25
    """Share of characters that are letters or digits."""


class CategorySettings(Settings):
    """One category of documents: where its pages come from and what is asked of them."""

    debian: tuple[DebianSource, ...] = ()
    installed: tuple[InstalledSource, ...] = ()
    warc: tuple[WarcSource, ...] = ()
    files: tuple[FilesSource, ...] = ()
    content: Literal["prose", "code"] = "prose"
    """Code is taken as it stands and asked `code`; prose goes through extractor, language and
    `prose`."""
    extractor: Literal["justext", "resiliparse"] = "justext"
    """How text is taken out of HTML. justext keeps full paragraphs (Nemotron-CC's choice; without a
    stop list for the language, resiliparse steps in); resiliparse keeps layout, code and LaTeX."""
    skip: tuple[str, ...] = ()
    """CSS selectors of what is no text on these sites, beyond common navigation: `"#header"`."""
    languages: tuple[str, ...] = LANGUAGES
    """Languages kept."""
    min_language_score: float = Field(default=0.5, ge=0, le=1)
    """Least probability of the language among the 16."""
    prose: ProseRules = ProseRules()
    prose_by_language: dict[str, dict[str, Any]] = Field(default={})
    """Rules that differ for a language: `prose_by_language.ko = { min_words = 30 }`."""
    code: CodeRules = CodeRules()
    required: bool = True
    """Whether it is an error if nothing is kept; else the category is left out with a warning."""

    @field_validator("languages")
    @classmethod
    def _known(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        for code in languages:
            _check_language(code)
        return languages

    @model_validator(mode="after")
    def _complete(self) -> "CategorySettings":
        if not (self.debian or self.installed or self.warc or self.files):
            raise ValueError("a category needs a source: debian, installed, warc or files")
        for code in self.prose_by_language:
            _check_language(code)
            self.prose_for(code)
        return self

    def prose_for(self, language: str) -> ProseRules:
        """Return the rules for prose in a language."""
        overrides = self.prose_by_language.get(language)
        if not overrides:
            return self.prose
        return ProseRules.parse(
            {**self.prose.model_dump(), **overrides}, f"prose_by_language.{language}"
        )


class DedupSettings(Settings):
    """When two documents are one. Defaults: 14 bands of 8 hashes over 5 words (threshold 0.72).

    Two documents of Jaccard similarity s share a band with probability 1 - (1 - s^8)^14.
    """

    ngram_words: int = Field(default=5, ge=1)
    num_bands: int = Field(default=14, ge=1)
    hashes_per_band: int = Field(default=8, ge=1)
    seed: int = 1


class CurateSettings(Settings):
    """Settings of the stage `curate`."""

    categories: dict[str, CategorySettings] = Field(min_length=1)
    dedup: DedupSettings = DedupSettings()
    validation_share: float = Field(default=0.02, ge=0, lt=1)
    """Share of each category's documents held out, chosen by a hash of the id; at least one."""
    keep_dropped: bool = False
    """Whether dropped documents are written to `dropped/<category>.jsonl`, each with its reason."""
    workers: int = Field(default=2, ge=1)
    """Processes at work. More than one needs a main module that can be imported (the usual
    `if __name__ == "__main__"`)."""
    seed: int = 0
    """Of page samples and of the split."""

    def files_read(self) -> list[Path]:
        """Return every file that a source names by path or glob."""
        return [
            path
            for name, category in self.categories.items()
            for source in (*category.warc, *category.files)
            for path in matching_files(source.paths, name)
        ]

    @field_validator("categories")
    @classmethod
    def _names(cls, categories: dict[str, CategorySettings]) -> dict[str, CategorySettings]:
        for name in categories:
            if not _CATEGORY.fullmatch(name):
                raise ValueError(
                    f"category {name!r}: a name is lower-case letters, digits, - and _"
                )
        return categories


def _check_language(code: str) -> None:
    if code not in LANGUAGES:
        raise ValueError(f"unknown language {code!r}; {nearest(code, list(LANGUAGES))}")


def matching_files(patterns: tuple[str, ...], category: str) -> list[Path]:
    """Return the files that a source's patterns match, in order.

    Raises: ConfigError naming the category and the pattern that matches nothing.
    """
    found = []
    for pattern in patterns:
        paths = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
        files = [Path(path) for path in paths if Path(path).is_file()]
        if not files:
            raise ConfigError(
                f"categories.{category}: no file matches {pattern!r} (from {Path.cwd()})"
            )
        found += files
    return found
