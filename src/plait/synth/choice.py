"""Multiple-choice questions: the form that a model fills, and how they are checked and printed."""

import re
from collections.abc import Sequence

from pydantic import BaseModel, Field

from plait.synth.client import Unusable

LETTERS = "ABCDEFGHIJ"
_LETTER = re.compile(r"\W*([A-J])\s*(?:[).:\]*,-].*)?", re.DOTALL | re.IGNORECASE)


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
    if answered:
        right_option(filled)


def right_option(filled: Choice) -> int:
    """Return the place of the option that the answer names, by its letter or in its words.

    Raises: Unusable if it names none.
    """
    words = [" ".join(text.lower().split()) for text in (filled.answer, *filled.options)]
    if words[0] in words[1:]:
        return words.index(words[0], 1) - 1
    letter = _LETTER.fullmatch(filled.answer.strip())
    if letter is None or (place := LETTERS.index(letter[1].upper())) >= len(filled.options):
        raise Unusable("answer_is_no_option", filled.answer[:40])
    return place


def as_question(question: str, options: Sequence[str]) -> str:
    """Return a question with its lettered options."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question.strip(), *lines])
