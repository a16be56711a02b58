"""Multiple-choice questions: the form that a model fills, and how they are checked and printed."""

from collections.abc import Sequence

from pydantic import BaseModel, Field

from plait.synth.client import Unusable

LETTERS = "ABCDEFGHIJ"


class Choice(BaseModel):
    """A question with options."""

    question: str
    options: list[str] = Field(min_length=2, max_length=len(LETTERS))
    answer: str = ""
    """Letter of the right option, where the writer knows it."""


def check_choice(filled: Choice, num_options: int | None = None, *, answered: bool = True) -> None:
    """Check that a question is asked, its options differ, and its answer is one of them.

    Raises: Unusable if not.
    """
    options = [" ".join(option.lower().split()) for option in filled.options]
    if not filled.question.strip():
        raise Unusable("no_question")
    if num_options is not None and len(options) != num_options:
        raise Unusable("wrong_number_of_options", f"{len(options)}, not {num_options}")
    if not all(options) or len(set(options)) < len(options):
        raise Unusable("equal_options")
    if answered and filled.answer.strip()[:1].upper() not in LETTERS[: len(options)]:
        raise Unusable("answer_is_no_option", filled.answer[:40])


def as_question(question: str, options: Sequence[str]) -> str:
    """Return a question with its lettered options."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question.strip(), *lines])
