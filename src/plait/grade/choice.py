"""Grade a multiple-choice answer by its letter.

Strict about committing to one letter, lenient about the usual forms: the last `\\boxed{B}`, else
what follows the last "answer is" or "Answer:", else a line of its own that is a letter or opens
with one ("B", "(B)", "**B**", "B) because ..."), the last such line counting. A letter inside a
sentence is no choice: the article "A" and the pronoun "I" would be.
"""

import re

from plait.core.errors import DataError
from plait.grade.boxed import last_boxed
from plait.grade.score import Score

# A letter in whatever wraps it: (B), **B**, $B$, \text{B}, "option B".
# Runs are possessive: given back piece by piece, blank lines would take cubic time.
_WRAPPED = r"[\s*_$(\[{]*+(?:\\(?:text|mathrm|mathbf|textbf)\{[\s(]*+)?([A-Z])"
_END = r"(?![\w'’])"
# "A" and "I" before a word begin a sentence, unless the word gives the reason for a choice.
_SENTENCE = r"(?<=[AI])\s+(?!(?:because|since|as|for|due|is)\b)[a-z]"
_STATED = re.compile(
    rf"(?i:\banswer\s*+(?:is|:)[\s:*]*+(?:option|choice)?){_WRAPPED}{_END}(?!{_SENTENCE})"
)
_ALONE = re.compile(rf"^{_WRAPPED}(?:[\s*_$)\]}}.]*$|[*]*[).:])", re.MULTILINE)
_BOXED = re.compile(rf"(?i:option|choice)?{_WRAPPED}{_END}")


def extract_choice(answer: str) -> str | None:
    """Return the letter an answer commits to, or None."""
    boxed = last_boxed(answer)
    if boxed is not None:
        found = _BOXED.match(boxed)
        return found.group(1) if found else None
    for form in (_STATED, _ALONE):
        if letters := form.findall(answer):
            return letters[-1]
    return None


def grade_choice(question: str, reference: str, answer: str) -> Score:
    """Score 1 if the answer's letter is the reference's, else 0 with the reason.

    Raises: DataError if the reference is not a single letter; case and brackets do not matter.
    """
    expected = reference.strip().strip("()").upper()
    if not re.fullmatch("[A-Z]", expected):
        raise DataError(
            f"reference {reference!r} of the question {question!r} is no letter; the verifier "
            "`choice` needs one"
        )
    if not answer.strip():
        return Score(0.0, "empty answer")
    found = extract_choice(answer)
    if found is None:
        return Score(0.0, "no choice in the answer")
    if found != expected:
        return Score(0.0, f"chose {found}, expected {expected}")
    return Score(1.0, "correct")
