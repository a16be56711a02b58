"""All graders under the names that data files use: one table for rewards and benchmarks."""

from collections.abc import Callable

from plait.grade.choice import grade_choice
from plait.grade.instruction.grade import grade_instruction
from plait.grade.maths import grade_maths
from plait.grade.number import grade_number
from plait.grade.program import grade_program
from plait.grade.score import Score
from plait.grade.toolcall import grade_toolcall

VERIFIERS: dict[str, Callable[[str, str, str], Score]] = {
    "choice": grade_choice,
    "instruction": grade_instruction,
    "maths": grade_maths,
    "number": grade_number,
    "program": grade_program,
    "toolcall": grade_toolcall,
}
