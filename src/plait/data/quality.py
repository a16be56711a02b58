"""Labels of documents: how good, how hard, about what. One interface, three kinds of classifier.

    Classifier: texts -> a label each, a number from 0 to 5 or a name; None where there is none

A `SequenceClassifier` is a transformers model by its directory (FineWeb-Edu's and FineMath's are of
this kind), a `StudentClassifier` is one of our own (`student`), an `EndpointClassifier` asks a
language model with a rubric (`labels`). `score_step` puts a classifier's labels into the metadata.
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.core.errors import ConfigError
from plait.data.labels import Label, ask_labels
from plait.data.quality_settings import LEAST, MOST, ScoreSettings
from plait.data.steps import Ask, Step, Task
from plait.data.student import Student

if TYPE_CHECKING:
    from datatrove.data import Document

_AT_ONCE = 64
_BATCH = 8


Classifier = Callable[[Sequence[str]], Sequence[Label | None]]
"""Gives a label to each text, in order; None where it can give none."""


def score_step(settings: ScoreSettings, student: Path | None) -> Step:
    """Note the label of each document in its metadata, under the score's name.

    Drops: `not_labelled` where an endpoint gave no answer of use.
    """

    def run(documents: "Iterator[Document]", task: Task) -> "Iterator[Document]":
        classify: Classifier | None = None
        while batch := list(itertools.islice(documents, _AT_ONCE)):
            classify = classify or open_classifier(settings, student, task)
            labels = classify([document.text for document in batch])
            for document, label in zip(batch, labels, strict=True):
                if label is None:
                    task.drop(document, "not_labelled")
                else:
                    known = isinstance(label, str)
                    document.metadata[settings.name] = label if known else round(label, 4)
                    yield document

    return Step(settings.name, run)


def check_classifier(settings: ScoreSettings, student: Path | None) -> None:
    """Look whether a score's classifier is there, before any work.

    Raises: ConfigError or CheckpointError if it is not, or does not know the score.
    """
    if settings.model:
        _check_config(settings.model)
    elif settings.by == "student":
        _student_of(settings, student)


def open_classifier(settings: ScoreSettings, student: Path | None, task: Task) -> Classifier:
    """Return the classifier that a score names.

    Raises: ConfigError if it is not there, or does not know the score.
    """
    if settings.by == "endpoint":
        if "label" not in task.ask:
            raise ConfigError(f"score {settings.name!r}: needs a table endpoints.label")
        return EndpointClassifier(settings.name, task.ask["label"])
    if settings.model:
        return open_sequence_classifier(settings.model, settings.max_tokens)
    return _student_of(settings, student)


def _student_of(settings: ScoreSettings, student: Path | None) -> "StudentClassifier":
    if student is None:
        raise ConfigError(
            f'score {settings.name!r}: by = "student" needs the stage that trained one: write '
            'student = "<an earlier stage or a path>" under [inputs]'
        )
    return StudentClassifier(settings.name, Student.read(student))


class EndpointClassifier:
    """A language model with a rubric."""

    def __init__(self, name: str, ask: Ask) -> None:
        self.name, self.ask = name, ask

    def __call__(self, texts: Sequence[str]) -> list[Label | None]:
        """Return the model's labels."""
        return ask_labels(self.name, texts, self.ask)


class StudentClassifier:
    """One label of a student."""

    def __init__(self, name: str, student: Student) -> None:
        student.check_name(name)
        self.name, self.student = name, student

    def __call__(self, texts: Sequence[str]) -> list[Label]:
        """Return the student's labels."""
        return self.student.labels(texts)[self.name]


class SequenceClassifier:
    """A transformers model that gives a text one number, or a probability to each of 0 to 5."""

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int) -> None:
        self.model, self.tokenizer = model, tokenizer
        positions = getattr(model.config, "max_position_embeddings", None) or max_tokens
        self.max_tokens = min(max_tokens, positions)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Return the numbers, brought into 0 to 5."""
        import torch

        crops = [self.middle(text) for text in texts]
        order = sorted(range(len(crops)), key=lambda i: len(crops[i]))  # little padding
        scores = [0.0] * len(crops)
        with torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                chosen = order[start : start + _BATCH]
                batch = [crops[i] for i in chosen]
                tokens = self.tokenizer(
                    batch,
                    padding=True,
                    truncation=True,
                    max_length=self.max_tokens,
                    return_tensors="pt",
                )
                for place, score in zip(
                    chosen, _as_numbers(self.model(**tokens).logits), strict=True
                ):
                    scores[place] = min(max(score, LEAST), MOST)
        return scores

    def middle(self, text: str) -> str:
        """Return the part of a text, out of its middle, that the model can read at once."""
        spans = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        room = self.max_tokens - self.tokenizer.num_special_tokens_to_add()
        if len(spans) <= room:
            return text
        first = (len(spans) - room) // 2
        return text[spans[first][0] : spans[first + room - 1][1]]


@functools.lru_cache(maxsize=4)
def open_sequence_classifier(directory: Path, max_tokens: int) -> SequenceClassifier:
    """Load a sequence classifier; only safetensors, and no code of its own.

    Raises: ConfigError if there is none at `directory`, or its outputs are no score.
    """
    try:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        raise ConfigError("classifiers need transformers: pip install 'plait[synth]'") from None
    _check_config(directory)
    disable_progress_bar()
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            directory, local_files_only=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, use_fast=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"classifier {directory}: cannot be loaded: {error}") from None
    if model.config.num_labels not in (1, 6):
        raise ConfigError(
            f"classifier {directory}: has {model.config.num_labels} outputs; one number, or one "
            "for each of 0 to 5"
        )
    return SequenceClassifier(model.eval(), tokenizer, max_tokens)


def _check_config(directory: Path) -> None:
    """Raises: ConfigError if there is no sequence classifier at `directory`."""
    config = directory / "config.json"
    if not config.is_file():
        raise ConfigError(f"classifier: {directory} holds no config.json; give a model's directory")
    architectures = json.loads(config.read_text()).get("architectures") or []
    if not any("SequenceClassification" in name for name in architectures):
        named = ", ".join(architectures) or "nothing"
        raise ConfigError(
            f"{config}: names {named}; a classifier is a ...ForSequenceClassification"
        )


def _as_numbers(logits: Any) -> list[float]:
    if logits.shape[-1] == 1:
        return logits[:, 0].float().tolist()
    weights = logits.float().softmax(-1)
    return (weights * weights.new_tensor(range(weights.shape[-1]))).sum(-1).tolist()
