"""Grade a program by running it in the sandbox against tests.

The program is the answer's last fenced block of Python, else its last fenced block, else all of
it. A reference holds either Python that runs after the program and raises if it is wrong (the form
of HumanEval and MBPP), or cases of standard input with the output each must print (the form of
LiveCodeBench; white space at the ends of lines does not count). The score is 1 if everything
passes, else 0.

A program that leaves before the tests have run does not pass: they end by printing a word that it
is not told. One that goes looking for that word in its own memory or source would find it; a reward
that is worth cheating for deserves input-output cases, where nothing secret is in the process.
"""

import json
import re
import secrets
import textwrap
from typing import Any

from plait.core.errors import DataError
from plait.grade.sandbox import Limits, Outcome, run_python
from plait.grade.score import Score

_PYTHON = ("python", "python3", "py", "py3")
_BLOCK = re.compile(r"```[ \t]*(\w*)[^\n]*\n(.*?)```", re.DOTALL)


def extract_program(answer: str) -> str:
    """Return the source an answer commits to; it may be empty."""
    blocks = _BLOCK.findall(answer)
    python = [source for language, source in blocks if language.lower() in _PYTHON]
    chosen = (python or [source for _, source in blocks] or [answer])[-1]
    return textwrap.dedent(chosen).strip("\n")  # a block within a list is indented


def grade_program(
    question: str,
    reference: str,
    answer: str,
    *,
    limits: Limits = Limits(wall_s=5.0, cpu_s=5),  # noqa: B008 (a constant)
    allow_unsandboxed: bool = False,
) -> Score:
    """Score 1 if the program passes every test, else 0 with the first failure.

    `reference` is JSON, `{"test": "assert f(1) == 2"}` or
    `{"cases": [{"stdin": "1\\n", "stdout": "2\\n"}, ...]}`; `limits` hold for each run.
    Raises: DataError if it is neither; ConfigError if no sandbox can be made here.
    """
    record = _read_reference(question, reference)
    program = extract_program(answer)
    if not program.strip():
        return Score(0.0, "empty answer")
    if "test" in record:
        word = secrets.token_hex(8)
        source = f"{program}\n\n{record['test']}\n\nprint('\\n{word}')\n"
        outcome = run_python(source, "", limits, allow_unsandboxed=allow_unsandboxed)
        failure = _failure(outcome)
        if failure is None and outcome.stdout.split("\n")[-2:] != [word, ""]:
            failure = "left before the tests had run"
        return Score(0.0, failure) if failure else Score(1.0, "correct")
    for number, case in enumerate(record["cases"], 1):
        outcome = run_python(program, case["stdin"], limits, allow_unsandboxed=allow_unsandboxed)
        failure = _failure(outcome)
        if failure is None and _lines(outcome.stdout) != _lines(case["stdout"]):
            failure = f"printed {outcome.stdout[:80]!r}, expected {case['stdout'][:80]!r}"
        if failure:
            return Score(0.0, f"case {number}: {failure}")
    return Score(1.0, "correct")


def _read_reference(question: str, reference: str) -> dict[str, Any]:
    try:
        record = json.loads(reference)
    except ValueError:
        record = None
    if isinstance(record, dict):
        cases = record.get("cases")
        if isinstance(record.get("test"), str):
            return record
        if cases and isinstance(cases, list) and all(map(_is_case, cases)):
            return record
    raise DataError(
        f"reference {reference[:200]!r} of the question {question!r} is neither "
        '{"test": "..."} nor {"cases": [{"stdin": "...", "stdout": "..."}, ...]}'
    )


def _is_case(case: Any) -> bool:
    return isinstance(case, dict) and all(
        isinstance(case.get(side), str) for side in ("stdin", "stdout")
    )


def _failure(outcome: Outcome) -> str | None:
    """Say why a run did not end well, in a line, or None."""
    if outcome.status != "finished":
        return outcome.status
    if outcome.return_code:
        last = (outcome.stderr.strip().splitlines() or [f"return code {outcome.return_code}"])[-1]
        return last[:200]
    return None


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]
