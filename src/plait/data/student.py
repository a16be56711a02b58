"""A small model that labels as a large one does: features of a text and a ridge regression on them.

A text becomes a row x of features, of length 1: a sentence embedding of its excerpt (`embed`), or
its words and pairs of words hashed with signs into a fixed number of places (as fastText hashes
n-grams; some hundred times as fast, any language). Labels Y are columns, centred: a number from 0
to 5 is one column, a name is one of zeros and a one for each name, and the largest wins. Then

    W = argmin |X W - Y|^2 + penalty |W|^2

in closed form from X = U S V'. So is what each label would have been without its own row:
residual / (1 - h), h the row's leverage. This leave-one-out error picks the penalty, and is what is
reported.

    student.json           features, labels, how well they were learnt
    student.safetensors    `<label>.weight` (columns, features), `<label>.bias` (columns)
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from plait.core.artifact import atomic_directory, disk_errors
from plait.core.config import nearest
from plait.core.errors import CheckpointError, ConfigError, DataError
from plait.data.embed import embed_texts
from plait.data.excerpt import excerpt
from plait.data.labels import Label
from plait.data.quality_settings import LEAST, MOST
from plait.data.words import split_words

FORMAT = 1
_PLACES = 4096
_STRETCH = 350
_READ_CHARACTERS = 20_000
_PENALTIES = tuple(10.0**power for power in range(-4, 4))
_SYMBOLS = re.compile(r"[^\w\s]|_")


class Features(NamedTuple):
    """How a text becomes a row of numbers."""

    kind: Literal["embedding", "words"]
    model: str | None = None
    """Directory of the encoder; None is MiniLM."""

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 rows (texts, width) of length 1.

        Raises: ConfigError if the encoder is not there.
        """
        if self.kind == "embedding":
            return embed_texts([excerpt(text, _STRETCH) for text in texts], self.model)
        return np.stack([hashed_words(text[:_READ_CHARACTERS]) for text in texts])


class Head(NamedTuple):
    """One label."""

    weight: np.ndarray
    """(columns, width), float32."""
    bias: np.ndarray
    """(columns,)"""
    names: tuple[str, ...]
    """The names that the columns stand for; none for a number."""
    facts: dict[str, Any]
    """What it was learnt from and how well: see `_fit`."""


class Student:
    """Features and heads."""

    def __init__(self, features: Features, heads: Mapping[str, Head]) -> None:
        self.features, self.heads = features, dict(heads)

    def check_name(self, name: str) -> None:
        """Raises: ConfigError if the student does not know a label."""
        if name not in self.heads:
            raise ConfigError(
                f"the student knows no label {name!r}; {nearest(name, [*self.heads])}"
            )

    def labels(self, texts: Sequence[str]) -> dict[str, list[Label]]:
        """Return for each label what each text gets, numbers brought into 0 to 5."""
        if not texts:
            return {name: [] for name in self.heads}
        rows = self.features.of(texts)
        return {
            name: _read(rows @ head.weight.T + head.bias, head) for name, head in self.heads.items()
        }

    def write(self, folder: Path) -> None:
        """Write the student to `folder`, whole or not at all."""
        from safetensors.numpy import save_file

        about = {
            "format": FORMAT,
            "features": self.features._asdict(),
            "labels": {
                name: {"names": list(head.names), **head.facts} for name, head in self.heads.items()
            },
        }
        tensors = {
            f"{name}.{kind}": np.ascontiguousarray(getattr(head, kind))
            for name, head in self.heads.items()
            for kind in ("weight", "bias")
        }
        with atomic_directory(folder) as partial:
            (partial / "student.json").write_text(json.dumps(about, indent=2) + "\n")
            with disk_errors(partial / "student.safetensors"):
                save_file(tensors, partial / "student.safetensors")

    @classmethod
    def read(cls, folder: Path) -> "Student":
        """Read what `write` wrote, from its folder or from a stage's.

        Raises: CheckpointError if it is not there or not whole.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = folder / "student" if (folder / "student").is_dir() else folder
        try:
            about = json.loads((folder / "student.json").read_text())
            tensors = load_file(folder / "student.safetensors")
            heads = {
                name: Head(
                    tensors[f"{name}.weight"],
                    tensors[f"{name}.bias"],
                    tuple(facts.pop("names")),
                    facts,
                )
                for name, facts in about["labels"].items()
            }
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']}, not {FORMAT}")
            return cls(Features(**about["features"]), heads)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder}: no student of documents ({type(error).__name__}: {error}); run the "
                "stage that trains it"
            ) from None


def train(
    texts: Sequence[str], labels: Mapping[str, Sequence[Label | None]], features: Features
) -> Student:
    """Fit a head for each label on the texts that have it.

    Raises: DataError if a label has too few texts or does not vary.
    """
    rows = features.of(texts)
    heads = {}
    for name, column in labels.items():
        known = [i for i, label in enumerate(column) if label is not None]
        values = [column[i] for i in known]
        if len(known) < 8 or len(set(map(str, values))) < 2:
            raise DataError(
                f"label {name!r}: {len(known)} texts with {len(set(map(str, values)))} different "
                "values; a student needs 8 with 2 at least"
            )
        heads[name] = _fit(rows[known], values)
    return Student(features, heads)


def hashed_words(text: str) -> np.ndarray:
    """Return a text's words and pairs of words, hashed with signs: float32 (4096,), of length 1.

    Numbers count as one word whatever they are; punctuation is a word.
    """
    words = split_words(_SYMBOLS.sub(r" \g<0> ", text.lower()))
    codes = np.fromiter((_word_code(word) for word in words), np.uint64, len(words))
    pairs = codes[:-1] * np.uint64(0x9E3779B97F4A7C15) + codes[1:]
    found, counts = np.unique(
        np.concatenate([codes, pairs ^ (pairs >> np.uint64(31))]), return_counts=True
    )
    row = np.zeros(_PLACES, np.float32)
    signs = np.where((found >> np.uint64(40)) & np.uint64(1), 1.0, -1.0)
    np.add.at(row, (found % np.uint64(_PLACES)).astype(np.int64), signs * np.log1p(counts))
    return row / max(float(np.linalg.norm(row)), 1e-12)


@functools.lru_cache(maxsize=1 << 17)
def _word_code(word: str) -> int:
    import xxhash

    return xxhash.xxh3_64_intdigest("0" if word.isdigit() else word)


def _read(values: np.ndarray, head: Head) -> list[Label]:
    if head.names:
        return [head.names[i] for i in values.argmax(1)]
    return np.clip(values[:, 0], LEAST, MOST).astype(float).tolist()


def _fit(rows: np.ndarray, labels: Sequence[Any]) -> Head:
    """Fit one label. `facts`: `num_labels`, `penalty`, and, leaving each row out: for numbers
    `mean_error` and `rank_correlation`, for names `accuracy`."""
    names = tuple(sorted(set(labels))) if isinstance(labels[0], str) else ()
    targets = (
        np.array([[label == name for name in names] for label in labels], np.float64)
        if names
        else np.array(labels, np.float64)[:, None]
    )
    mean_row, mean_target = rows.mean(0, dtype=np.float64), targets.mean(0)
    left, sizes, right = np.linalg.svd(rows - mean_row, full_matrices=False)
    aimed = left.T @ (targets - mean_target)
    best: tuple[float, float, np.ndarray] | None = None
    for penalty in _PENALTIES:
        shrunk = sizes**2 / (sizes**2 + penalty)
        residuals = targets - mean_target - left @ (shrunk[:, None] * aimed)
        leverage = (left**2 @ shrunk) + 1 / len(rows)
        without = residuals / np.maximum(1 - leverage, 1e-9)[:, None]
        error = float((without**2).mean())
        if best is None or error < best[0]:
            best = error, penalty, targets - without
    assert best is not None
    _, penalty, predicted = best
    weight = (right.T @ ((sizes / (sizes**2 + penalty))[:, None] * aimed)).T
    bias = mean_target - weight @ mean_row
    head = Head(weight.astype(np.float32), bias.astype(np.float32), names, {})
    facts = {
        "num_labels": len(labels),
        "penalty": penalty,
        **_quality(_read(predicted, head), labels),
    }
    return head._replace(facts=facts)


def _quality(predicted: Sequence[Label], labels: Sequence[Label]) -> dict[str, float]:
    if isinstance(labels[0], str):
        return {
            "accuracy": float(np.mean([a == b for a, b in zip(predicted, labels, strict=True)]))
        }
    guess, truth = np.array(predicted, float), np.array(labels, float)
    return {
        "mean_error": float(np.abs(guess - truth).mean()),
        "rank_correlation": float(np.nan_to_num(np.corrcoef(_ranks(guess), _ranks(truth))[0, 1])),
    }


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks, equal values sharing their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[place]
