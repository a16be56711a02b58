"""Question and answer pairs about a text: the form that a model fills, and how they are checked."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from plait.synth.client import Unusable

Kind = Literal[
    "yes_no", "open_ended", "multiple_choice", "comparison", "comprehension", "problem_solving"
]
MAX_PAIRS = 8
LONGEST_QUESTION = 2000
"""In characters. Not in the form: llama.cpp dies of a grammar that counts that far."""


class Pair(BaseModel):
    """A question about a text, and its answer."""

    kind: Kind
    question: str
    answer: str


class Pairs(BaseModel):
    """What a model hands in."""

    pairs: list[Pair] = Field(min_length=1, max_length=MAX_PAIRS)


def usable_pairs(filled: Pairs, dropped: Counter[str]) -> list[Pair]:
    """Return the pairs that can stand, counting the others by reason.

    Raises: Unusable if none can.
    """
    kept: list[Pair] = []
    asked: set[str] = set()
    for pair in filled.pairs:
        question = " ".join(pair.question.split())
        reason = None
        if not question or not pair.answer.strip():
            reason = "empty_pair"
        elif len(question) > LONGEST_QUESTION:
            reason = "long_question"
        elif question.lower() in asked:
            reason = "repeated_question"
        elif pair.answer.strip().lower() == question.lower():
            reason = "answer_is_question"
        if reason:
            dropped[reason] += 1
        else:
            asked.add(question.lower())
            kept.append(pair)
    if not kept:
        raise Unusable("no_usable_pair")
    return kept


def as_text(pairs: Sequence[Pair]) -> str:
    """Return pairs as they stand in a document."""
    return "\n\n".join(f"Question: {p.question.strip()}\nAnswer: {p.answer.strip()}" for p in pairs)
