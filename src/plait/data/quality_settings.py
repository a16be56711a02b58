"""What a recipe says about scores of documents, tiers made of them, and benchmarks kept out.

[[categories.crawl.scores]]
name = "educational"
by = "student"                      # the input `student`; or "endpoint"; or a model's directory

[categories.crawl.tiers]
by = ["educational"]
buckets = { crawl-medium = 7, crawl-medium-high = 12, crawl-high = 18 }

[[decontaminate.benchmarks]]
name = "gsm8k"
paths = ["benchmarks/gsm8k/test.jsonl"]
"""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from plait.core.config import Settings, nearest
from plait.core.errors import ConfigError
from plait.data.source_settings import matching_files

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
# Labels that are a name of a list; every other label is a number.
SUBJECT = "subject"
RUBRICS = ("educational", "difficulty", "maths", SUBJECT)
LEAST, MOST = 0.0, 5.0

_OURS = {"category", "source", "url", "licence", "media_type", "language", "language_score", "pool"}


class ScoreSettings(Settings):
    """One label that documents get: a number from 0 to 5, or a subject."""

    name: str
    """Under which it stands in the metadata. An endpoint knows the rubrics `educational`,
    `difficulty`, `maths` and `subject`; a student, what it was taught."""
    by: str = "student"
    """`student`: the stage's input of that name. `endpoint`: the model of the role `label`. Else
    the directory of a sequence classifier, such as one of FineWeb-Edu's kind."""
    max_tokens: int = Field(default=512, ge=8)
    """What a sequence classifier reads of a document, out of its middle; the endpoint and the
    student see its start, middle and end."""

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if not NAME.fullmatch(name) or name in _OURS:
            raise ValueError("a score's name is lower-case and no other metadata's")
        return name

    @model_validator(mode="after")
    def _has_rubric(self) -> "ScoreSettings":
        if self.by == "endpoint" and self.name not in RUBRICS:
            raise ValueError(
                f"an endpoint has no rubric {self.name!r}; {nearest(self.name, list(RUBRICS))}"
            )
        return self

    @property
    def model(self) -> Path | None:
        """The directory of the classifier, if it is one."""
        return None if self.by in ("student", "endpoint") else Path(self.by).expanduser()


class TierSettings(Settings):
    """Into which categories a category's documents go, by their scores."""

    by: tuple[str, ...] = Field(min_length=1)
    """Names of scores; the one that says most of a document counts (Nemotron-CC)."""
    num_buckets: int = Field(default=20, ge=2)
    """Into how many parts of equal size, in bytes of text, each score cuts the category
    (Nemotron-CC: 20)."""
    buckets: dict[str, int] = Field(default={})
    """Category to its first bucket, counted from 0, the worst."""
    scores: dict[str, float] = Field(default={})
    """Or category to its least score. Documents below all are dropped as `low_quality`."""

    @field_validator("buckets", "scores")
    @classmethod
    def _named(cls, tiers: dict[str, Any]) -> dict[str, Any]:
        for name in tiers:
            if not NAME.fullmatch(name):
                raise ValueError(f"category {name!r}: a name is lower-case letters, digits, -, _")
        if len(set(tiers.values())) < len(tiers):
            raise ValueError("two categories begin at the same place")
        return tiers

    @model_validator(mode="after")
    def _one_of_both(self) -> "TierSettings":
        if bool(self.buckets) == bool(self.scores):
            raise ValueError("tiers need either buckets or scores")
        for name, first in self.buckets.items():
            if not 0 <= first < self.num_buckets:
                raise ValueError(f"{name}: bucket {first} is not in 0..{self.num_buckets - 1}")
        return self

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories that are made, the worst first."""
        tiers = self.buckets or self.scores
        return tuple(sorted(tiers, key=lambda name: tiers[name]))


class BenchmarkSettings(Settings):
    """A set of questions that no training text may hold."""

    name: str
    paths: tuple[str, ...] = Field(min_length=1)
    """JSONL files, or glob patterns, one question a line."""
    fields: tuple[str, ...] = ()
    """Fields whose texts make the question; by default the first there is of `question`, `prompt`,
    `problem`, `query`, `instruction`, `text`, with `choices` or `options`."""


class EmbeddingSettings(Settings):
    """How questions told in other words are found: by the likeness of sentence embeddings."""

    model: str | None = None
    """Directory of an encoder; None takes MiniLM (English)."""
    window_tokens: int = Field(default=128, ge=16)
    """Longest stretch of a document, estimated, that is compared at once."""
    num_nearest: int = Field(default=3, ge=1)
    """Questions that the judge is asked about for one document, the most alike first."""
    min_similarity: float = Field(default=0.7, ge=0, le=1)
    """Cosine from which the judge is asked. Our choice, measured for MiniLM."""
    drop_similarity: float = Field(default=0.9, ge=0, le=1)
    """Cosine from which a document is dropped where there is no judge (Nemotron-CC-Math: 0.9)."""


class DecontaminateSettings(Settings):
    """What is kept out of training text, and how it is looked for."""

    benchmarks: tuple[BenchmarkSettings, ...] = ()
    """Questions to keep out, besides those of the stages under the input `benchmarks`."""
    ngram_words: int = Field(default=13, ge=2)
    """Words in a row that count as one agreement (GPT-3: 13)."""
    min_words: int = Field(default=8, ge=1)
    """A question of fewer than `ngram_words` must stand whole; one of fewer than these is not
    looked for by words. Our choice."""
    min_overlap: float = Field(default=0.2, gt=0, le=1)
    """Share of a question's n-grams in a document from which it is dropped. Our choice."""
    embedding: EmbeddingSettings | None = None
    """None compares words only. With it, the model of the role `judge` has the last word if there
    is one."""

    @field_validator("benchmarks")
    @classmethod
    def _distinct(cls, found: tuple[BenchmarkSettings, ...]) -> tuple[BenchmarkSettings, ...]:
        names = [benchmark.name for benchmark in found]
        if len(set(names)) < len(names):
            raise ValueError(f"two benchmarks have the same name: {', '.join(sorted(names))}")
        return found

    def files_of(self, benchmark: BenchmarkSettings) -> list[Path]:
        """Return a benchmark's files. Raises: ConfigError for a pattern that matches nothing."""
        return matching_files(benchmark.paths, f"decontaminate.benchmarks {benchmark.name!r}")

    def files_read(self) -> list[Path]:
        """Return the files of all benchmarks."""
        return [path for benchmark in self.benchmarks for path in self.files_of(benchmark)]


Role = Literal["clean", "label", "judge"]


def model_files(directory: Path, where: str) -> list[Path]:
    """Return the files of a model's directory. Raises: ConfigError if it holds no model."""
    if not (directory / "config.json").is_file():
        raise ConfigError(
            f"{where}: {directory} holds no config.json (from {Path.cwd()}); give the directory of "
            'a sequence classifier, "student" or "endpoint"'
        )
    return sorted(path for path in directory.iterdir() if path.is_file())
