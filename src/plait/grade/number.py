"""Grade a short numeric answer by exact value.

Strict about the value, lenient about the sentence around it: the first number after the last
"answer is" counts, else the last number of the text. Thousands commas are read ("1,024"), a full
stop at the end is not part of a number, and 7, 7.0 and 07 are equal. Fractions, exponents, percent
signs and units are not understood; they belong to a mathematics grader.
"""

import re
from decimal import Decimal

from plait.core.errors import DataError
from plait.grade.score import Score

# What follows is no word, and no digits of the same number: "1.5kg" is not 1.
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w|\.\d|,\d{3}(?!\d))")
_MARKER = re.compile(r"\banswer\s+is\b", re.IGNORECASE)


def extract_number(answer: str) -> Decimal | None:
    """Return the number an answer commits to, or None if it holds none."""
    before, *after = _MARKER.split(answer)
    numbers = _NUMBER.findall(after[-1])[:1] if after else _NUMBER.findall(before)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def grade_number(question: str, reference: str, answer: str) -> Score:
    """Score 1 if the answer's number equals the reference's, else 0 with the reason.

    `question` only appears in errors; every grader has the same signature.
    Raises: DataError if the reference holds no number.
    """
    expected = extract_number(reference)
    if expected is None:
        raise DataError(
            f"reference {reference!r} of the question {question!r} holds no number; the verifier "
            "`number` needs one"
        )
    if not answer.strip():
        return Score(0.0, "empty answer")
    found = extract_number(answer)
    if found is None:
        return Score(0.0, "no number in the answer")
    if found != expected:
        return Score(0.0, f"answered {found}, expected {expected}")
    return Score(1.0, "correct")
