"""What a document is labelled with, and how a model of the role `label` is asked for it.

    educational   how much it teaches, 0 to 5
    difficulty    whom it is written for, 0 (small children) to 5 (researchers)
    maths         how well it teaches mathematics, 0 to 5
    subject       one of `SUBJECTS`

The rubrics are prompts of this room (`prompts/label_<name>.txt`). A model reads start, middle and
end of a document and closes its answer with a line `Label: ...`.
"""

import functools
import importlib.resources
import re
from collections.abc import Sequence

from plait.data.excerpt import excerpt
from plait.data.quality_settings import LEAST, MOST, SUBJECT
from plait.data.steps import Ask

Label = float | str

SUBJECTS = (
    "mathematics",
    "physics",
    "chemistry",
    "biology",
    "medicine",
    "earth and environment",
    "computing",
    "engineering",
    "economics and business",
    "law and politics",
    "history",
    "philosophy and religion",
    "psychology and society",
    "language and literature",
    "arts",
    "other",
)

_STRETCH = 2_000
_LINE = re.compile(r"^\W*label\W*[:=][\s*]*(.+?)\W*$", re.IGNORECASE | re.MULTILINE)
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*5)?")


def ask_labels(name: str, texts: Sequence[str], ask: Ask) -> list[Label | None]:
    """Return a model's label of each text; None for an answer that holds none."""
    frame = _rubric(name)
    answers = ask([frame.replace("{text}", excerpt(text, _STRETCH)) for text in texts])
    return [None if answer is None else read_label(name, answer) for answer in answers]


def read_label(name: str, answer: str) -> Label | None:
    """Return the label in an answer's last line that has one; None for none, or none allowed."""
    lines = _LINE.findall(answer)
    said = (lines[-1] if lines else answer).strip().lower()
    if name == SUBJECT:
        return said if said in SUBJECTS else None
    number = _NUMBER.fullmatch(said)
    return check_label(name, float(number[1])) if number else None


def check_label(name: str, value: object) -> Label | None:
    """Return a value as the label it is; None if it is not one that `name` may have."""
    if name == SUBJECT:
        return value if isinstance(value, str) and value in SUBJECTS else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if LEAST <= value <= MOST else None


@functools.cache
def _rubric(name: str) -> str:
    folder = importlib.resources.files("plait.data") / "prompts"
    text = (folder / f"label_{name}.txt").read_text(encoding="utf-8")
    return text.replace("{subjects}", ", ".join(SUBJECTS))
