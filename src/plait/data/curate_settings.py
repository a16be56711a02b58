"""Everything a user can set about curation but its sources: steps, rules, deduplication, split.

[categories.english]
content = "web"
languages = ["en"]
[[categories.english.warc]]
paths = ["crawl/*.warc.gz"]
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from plait.core.config import Settings, nearest
from plait.core.endpoint import EndpointSettings
from plait.data.quality_settings import (
    NAME,
    SUBJECT,
    DecontaminateSettings,
    Role,
    ScoreSettings,
    TierSettings,
    model_files,
)
from plait.data.source_settings import (
    DebianCodeSource,
    DebianSource,
    FilesSource,
    InstalledSource,
    WarcSource,
    matching_files,
)

# English and the 15 languages of the report, in the codes of ISO 639-1.
LANGUAGES = ("en", "ar", "zh", "da", "nl", "fr", "de", "it", "ja", "ko", "pl", "pt", "ru", "es",
             "sv", "th")  # fmt: skip


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
    """What source code must look like to be kept; limits by language are in `code_languages.toml`.

    The kinds of rule are OpenCoder's (arXiv 2411.04905, appendix A); line lengths and
    `min_alphanumeric` are The Stack's numbers, the other limits ours, set on Debian's sources.
    """

    detect_licences: bool = True
    """Whether the head of each file is searched for a licence of its own (ScanCode: 1.4 GB in each
    worker). If not, what the source states of it counts alone."""
    min_characters: int = 100
    max_characters: int = 1_000_000
    max_lines: int = 20_000
    max_line_characters: int = 1_000
    max_mean_line_characters: float = 100.0
    min_alphanumeric: float = 0.25
    """Share of characters that are letters or digits."""
    min_alphabetic: float = 0.3
    """Share of letters in what is not blank."""
    min_distinct_words: int = 8
    max_encoded: float = 0.3
    """Share of characters in runs of base64, hexadecimal or escaped data."""
    max_hex: float = 0.3
    """Share of hexadecimal numbers in code."""
    max_strings: float = 0.6
    """Share of code inside quotes."""
    min_code: float = 0.1
    """Share of characters that are no comment."""
    max_repeated_lines: float = 0.7
    """Share of lines of code that occur more than once."""
    min_lines_judged: int = 20
    """Shorter files are given this many lines when repeated ones are counted."""
    max_to_do: float = 0.1
    """Notes of what is to be done, a line."""
    max_error_lines: float = 0.05
    """Share of lines that cannot be parsed."""


class CategorySettings(Settings):
    """One category of documents: where its pages come from and what is asked of them."""

    debian: tuple[DebianSource, ...] = ()
    installed: tuple[InstalledSource, ...] = ()
    debian_code: tuple[DebianCodeSource, ...] = ()
    warc: tuple[WarcSource, ...] = ()
    files: tuple[FilesSource, ...] = ()
    content: Literal["web", "text", "maths", "code"] = "web"
    """Which steps its pages go through. `web`: URL, extractor, language, `prose`. `text` is taken
    as it stands, then language and `prose`. `code`: a permissive licence, `code`, syntax."""
    url_lists: bool = True
    """Whether http addresses are looked up in datatrove's lists of unwanted sites (0.5 GB in each
    worker)."""
    max_page_bytes: int = Field(default=10_000_000, ge=1)
    """Longer pages are dropped unread."""
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
    scores: tuple[ScoreSettings, ...] = ()
    """Labels that the documents get after deduplication."""
    tiers: TierSettings | None = None
    """Into which categories the documents go by their scores; None leaves them in this one."""
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
        if not (self.debian or self.debian_code or self.installed or self.warc or self.files):
            raise ValueError(
                "a category needs a source: debian, debian_code, installed, warc or files"
            )
        for code in self.prose_by_language:
            _check_language(code)
            self.prose_for(code)
        names = [score.name for score in self.scores]
        if len(set(names)) < len(names):
            raise ValueError(f"two scores have the same name: {', '.join(names)}")
        for name in self.tiers.by if self.tiers else ():
            if name not in names or name == SUBJECT:
                raise ValueError(f"tiers: no score {name!r} with numbers; {nearest(name, names)}")
        return self

    def made(self, name: str) -> tuple[str, ...]:
        """Return the categories that the documents of this one, called `name`, end in."""
        return self.tiers.categories if self.tiers else (name,)

    def prose_for(self, language: str) -> ProseRules:
        """Return the rules for prose in a language."""
        overrides = self.prose_by_language.get(language)
        if not overrides:
            return self.prose
        return ProseRules.parse(
            {**self.prose.model_dump(), **overrides}, f"prose_by_language.{language}"
        )


class DedupSettings(Settings):
    """When two documents are one. Defaults: 20 bands of 13 hashes over 24 characters (Nemotron-CC).

    Two documents of Jaccard similarity s share a band with probability 1 - (1 - s^13)^20: 0.68 at
    s = 0.8, 0.92 at 0.85, 0.997 at 0.9, 0.10 at 0.65.
    """

    ngram_characters: int = Field(default=24, ge=1)
    num_bands: int = Field(default=20, ge=1)
    hashes_per_band: int = Field(default=13, ge=1)
    seed: int = 1


class SlurmSettings(Settings):
    """How tasks are put to a Slurm cluster; all must see the file system of the run folder."""

    partition: str
    time: str = "08:00:00"
    """Limit of one job."""
    cpus_per_task: int = 1
    mem_per_cpu_gb: int = 4
    max_array_size: int = 1001
    """The cluster's own limit."""
    poll_s: float = 10.0
    """How often the main process looks whether jobs are done."""


class CurateSettings(Settings):
    """Settings of the stage `curate`."""

    categories: dict[str, CategorySettings] = Field(min_length=1)
    dedup: DedupSettings = DedupSettings()
    validation_share: float = Field(default=0.02, ge=0, lt=1)
    """Share of each category's documents held out, chosen by a hash of the id; at least one."""
    keep_dropped: bool = False
    """Whether dropped documents are written to `dropped/<category>.jsonl`, each with its reason."""
    executor: Literal["local", "slurm", "ray"] = "local"
    """Where tasks run: in processes of this machine, as jobs of a Slurm cluster, on Ray."""
    slurm: SlurmSettings | None = None
    """Needed by `executor = "slurm"`."""
    workers: int = Field(default=2, ge=1)
    """Tasks at work at once. More than one local needs a main module that can be imported (the
    usual `if __name__ == "__main__"`)."""
    seed: int = 0
    """Of page samples and of the split."""
    decontaminate: DecontaminateSettings | None = None
    """What no document may hold; None looks for nothing."""
    endpoints: dict[Role, EndpointSettings] = Field(default={})
    """Models that are asked: `clean` for pages of mathematics, `label` for scores, `judge` for what
    may be a benchmark's question in other words."""

    @model_validator(mode="after")
    def _asked(self) -> "CurateSettings":
        for name, category in self.categories.items():
            if any(s.by == "endpoint" for s in category.scores) and "label" not in self.endpoints:
                raise ValueError(f"categories.{name}.scores: needs a table endpoints.label")
        return self

    @model_validator(mode="after")
    def _placed(self) -> "CurateSettings":
        if self.executor == "slurm" and self.slurm is None:
            raise ValueError('executor = "slurm" needs a table slurm with the partition')
        return self

    def files_read(self) -> list[Path]:
        """Return every file that a source, a score or a benchmark names by path or glob."""
        pages = [
            path
            for name, category in self.categories.items()
            for source in (*category.warc, *category.files)
            for path in matching_files(source.paths, f"categories.{name}")
        ]
        models = [
            path
            for name, category in self.categories.items()
            for score in category.scores
            if score.model
            for path in model_files(score.model, f"categories.{name}.scores {score.name!r}")
        ]
        return [*pages, *models, *(self.decontaminate.files_read() if self.decontaminate else [])]

    @field_validator("categories")
    @classmethod
    def _names(cls, categories: dict[str, CategorySettings]) -> dict[str, CategorySettings]:
        for name in categories:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"category {name!r}: a name is lower-case letters, digits, - and _"
                )
        return categories


def _check_language(code: str) -> None:
    if code not in LANGUAGES:
        raise ValueError(f"unknown language {code!r}; {nearest(code, list(LANGUAGES))}")
