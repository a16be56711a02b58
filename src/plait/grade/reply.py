"""Grade short letters by what anyone can see in them: greeting, subject, close, repetition, length.

The reference is JSON: {"name": "Anna", "thing": "lamp"}. The score is the share of five qualities:

    greets      the first sentence greets the person by name
    subject     the thing is mentioned
    closes      the last sentence is a polite close
    once        no sentence is said twice
    short       2 to 4 sentences

It stands for what people prefer in the tiny recipe, where nobody can be asked.
"""

import json
import re

from plait.core.errors import DataError
from plait.grade.score import Score

GREETINGS = ("Hello", "Dear")
CLOSES = ("Thank you.", "Kind regards.")
MAX_SENTENCES = 4

_SENTENCE = re.compile(r"[^.!?]*[.!?]|[^.!?]+$")


def grade_reply(question: str, reference: str, answer: str) -> Score:
    """Score a letter from 0 to 1.

    Raises: DataError if the reference is not as above.
    """
    del question
    try:
        wanted = json.loads(reference)
        name, thing = str(wanted["name"]), str(wanted["thing"])
    except (ValueError, TypeError, KeyError):
        raise DataError(
            f'reference {reference[:80]!r} is no {{"name": ..., "thing": ...}}'
        ) from None
    sentences = [" ".join(found.split()) for found in _SENTENCE.findall(answer)]
    sentences = [sentence for sentence in sentences if sentence]
    qualities = {
        "greets": bool(sentences) and sentences[0] in {f"{word} {name}." for word in GREETINGS},
        "subject": re.search(rf"\b{re.escape(thing)}\b", answer) is not None,
        "closes": bool(sentences) and sentences[-1] in CLOSES,
        "once": bool(sentences) and len(set(sentences)) == len(sentences),
        "short": 2 <= len(sentences) <= MAX_SENTENCES,
    }
    missing = [quality for quality, holds in qualities.items() if not holds]
    value = 1 - len(missing) / len(qualities)
    return Score(value, f"lacks: {', '.join(missing)}" if missing else "correct")
