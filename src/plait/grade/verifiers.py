"""The graders by the names that data files use, so that rewards and benchmarks share them.

Nothing is imported until a grader is needed: some bring large packages.
"""

from collections.abc import Callable
from importlib import import_module

from plait.core.config import nearest
from plait.core.errors import DataError
from plait.grade.score import Score

Verifier = Callable[[str, str, str], Score]
"""(question, reference, answer) -> score"""

VERIFIERS = {
    "number": "plait.grade.number:grade_number",
    "maths": "plait.grade.maths:grade_maths",
    "choice": "plait.grade.choice:grade_choice",
    "instruction": "plait.grade.instruction.grade:grade_instruction",
    "program": "plait.grade.program:grade_program",
    "toolcall": "plait.grade.toolcall:grade_toolcall",
    "reply": "plait.grade.reply:grade_reply",
}
"""Name to `module:function`."""


def load_verifier(place: str) -> Verifier:
    """Import the function at `module:function`."""
    module, _, function = place.partition(":")
    return getattr(import_module(module), function)


def verifier_place(name: str) -> str:
    """Return where the grader of a name is.

    Raises: DataError if there is none.
    """
    if name not in VERIFIERS:
        raise DataError(f"no verifier {name!r}; {nearest(name, list(VERIFIERS))}")
    return VERIFIERS[name]
