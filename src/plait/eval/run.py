"""Questions to answers to scores: one small runner for every evaluation with a verifier.

What generates and what grades come in as functions, so the same runner scores the engine, an
endpoint or a script in a test. It measures what a thinking budget trades: how often the answer is
right, how many tokens were spent, and whether the output is well-formed.
"""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plait.core.config import nearest
from plait.core.errors import DataError
from plait.core.seed import mix_seed
from plait.data.chat import Message
from plait.engine.request import Completion, SamplingParams
from plait.grade.verifiers import Verifier

Conversation = list[Message]


class Question(NamedTuple):
    """A prompt whose answer can be checked."""

    id: str
    family: str
    prompt: Conversation
    verifier: str
    """Which grader reads the answer."""
    reference: str
    tools: list[Any] | None = None
    """Declarations of the tools that may be called."""

    @property
    def text(self) -> str:
        """The last message: what is asked."""
        return self.prompt[-1]["content"]


Generate = Callable[[Sequence[Question], Sequence[SamplingParams]], list[Completion]]


class Setting(NamedTuple):
    """One way of asking all questions."""

    name: str
    thinking: bool
    """Switched on or off in the prompt, as a user would: `/think` or `/no_think`."""
    params: SamplingParams


class Answer(NamedTuple):
    """What came back for one question under one setting, and what it was worth."""

    setting: str
    id: str
    family: str
    question: str
    reference: str
    reasoning: str | None
    content: str
    score: float
    reason: str
    """Of the score."""
    well_formed: bool
    """With thinking: exactly one closing tag; without: no trace and no tag."""
    num_reasoning_tokens: int
    num_tokens: int
    """Everything after the prompt."""
    finish_reason: str


class Mean(NamedTuple):
    """A mean score over questions and its standard error."""

    accuracy: float
    standard_error: float
    num_questions: int


class Result(NamedTuple):
    """All questions under one setting."""

    setting: Setting
    overall: Mean
    families: dict[str, Mean]
    well_formed: float
    """Share of answers."""
    cut_off: float
    """Share of answers that ended at max_tokens."""
    reasoning_tokens: float
    """Mean per question."""
    total_tokens: float
    """Mean per question, trace and answer together."""


def read_questions(file: Path, limit: int | None = None) -> list[Question]:
    """Read questions from JSON lines with the fields of `Question`, the first `limit` of them.

    Raises: DataError naming file and line, or if there are none.
    """
    try:
        with file.open(encoding="utf-8") as open_file:
            lines = list(open_file)  # not splitlines: a text may hold U+0085 or U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: no readable questions; finish the sft stage: {error}") from None
    questions = [
        _question(line, f"{file}, line {number}")
        for number, line in enumerate(lines[:limit], start=1)
    ]
    if not questions:
        raise DataError(f"{file}: holds no questions")
    return questions


def check_verifiers(questions: Sequence[Question], verifiers: Collection[str]) -> None:
    """Refuse questions that nothing can grade.

    Raises: DataError naming the question and its verifier.
    """
    for question in questions:
        if question.verifier not in verifiers:
            raise DataError(
                f"question {question.id!r}: no verifier {question.verifier!r}; "
                f"{nearest(question.verifier, list(verifiers))}"
            )


def ask(
    questions: Sequence[Question],
    setting: Setting,
    generate: Generate,
    verifiers: Mapping[str, Verifier],
    seed: int = 0,
) -> list[Answer]:
    """Ask every question once and grade the answers.

    When it samples, each question has its own seed, mixed from `seed`, setting and question.
    Raises: DataError for an unknown verifier or a reference that its verifier cannot read.
    """
    check_verifiers(questions, verifiers)
    asked = [
        question._replace(prompt=switched(question.prompt, setting.thinking))
        for question in questions
    ]
    params = [
        setting.params.model_copy(update={"seed": mix_seed(seed, setting.name, question.id)})
        for question in questions
    ]
    completions = generate(asked, params)
    return [
        _graded(question, setting, completion, verifiers[question.verifier])
        for question, completion in zip(questions, completions, strict=True)
    ]


def summarise(setting: Setting, answers: Sequence[Answer]) -> Result:
    """Average the answers of one setting, over all and over each family."""
    families: dict[str, list[float]] = {}
    for answer in answers:
        families.setdefault(answer.family, []).append(answer.score)
    return Result(
        setting,
        mean_score([answer.score for answer in answers]),
        {family: mean_score(scores) for family, scores in families.items()},
        _mean(answer.well_formed for answer in answers),
        _mean(answer.finish_reason == "length" for answer in answers),
        _mean(answer.num_reasoning_tokens for answer in answers),
        _mean(answer.num_tokens for answer in answers),
    )


def mean_score(scores: Sequence[float]) -> Mean:
    """Return the mean and its standard error, s / sqrt(n) with the sample deviation s.

    The error of a single score is not known and given as 0.
    """
    number, mean = len(scores), math.fsum(scores) / len(scores)
    squares = math.fsum((score - mean) ** 2 for score in scores)
    return Mean(mean, math.sqrt(squares / max(number - 1, 1) / number), number)


def switched(conversation: Conversation, thinking: bool) -> Conversation:
    """Return the conversation with thinking switched in its last message."""
    *before, last = conversation
    switch = "/think" if thinking else "/no_think"
    return [*before, {**last, "content": f"{last['content']} {switch}"}]


def _graded(
    question: Question, setting: Setting, completion: Completion, verify: Verifier
) -> Answer:
    score = verify(question.text, question.reference, completion.content)
    silent = completion.reasoning is None and completion.num_closing_tags == 0
    return Answer(
        setting.name,
        question.id,
        question.family,
        question.text,
        question.reference,
        completion.reasoning,
        completion.content,
        score.value,
        score.reason,
        completion.num_closing_tags == 1 if setting.thinking else silent,
        completion.num_reasoning_tokens,
        len(completion.token_ids),
        completion.finish_reason,
    )


def _question(line: str, where: str) -> Question:
    try:
        record: dict[str, Any] = json.loads(line)
        needed = [field for field in Question._fields if field not in Question._field_defaults]
        question = Question(**{field: record[field] for field in needed}, tools=record.get("tools"))
        last = question.prompt[-1]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise DataError(
            f"{where}: a question has the fields {', '.join(Question._fields[:-1])}; "
            f"{type(error).__name__}: {error}"
        ) from None
    if isinstance(question.id, int):  # as many public sets have it
        question = question._replace(id=str(question.id))
    for field in ("id", "family", "verifier", "reference"):
        if not isinstance(getattr(question, field), str):
            raise DataError(f"{where}: {field} is {getattr(question, field)!r}; it must be a text")
    for field in ("prompt", "tools"):
        listed = getattr(question, field) or []
        if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
            raise DataError(f"{where}: {field} is {listed!r}; it must be a list of objects")
    if last.get("role") not in ("user", "tool") or not isinstance(last.get("content"), str):
        raise DataError(f"{where}: the prompt must end with a message of text by a user or tool")
    return question


def _mean(values: Any) -> float:
    numbers = [float(value) for value in values]
    return math.fsum(numbers) / len(numbers)
