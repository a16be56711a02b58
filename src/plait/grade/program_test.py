import json
import os

import pytest

from plait.core.errors import DataError
from plait.grade.program import extract_program, grade_program
from plait.grade.sandbox import Limits, find_sandbox

TEST = json.dumps({"test": "assert double(2) == 4\nassert double('a') == 'aa'"})
CASES = json.dumps(
    {"cases": [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "5 5", "stdout": "10"}]}
)


@pytest.fixture
def _sandbox():
    if find_sandbox() == "none" and os.environ.get("CI") != "true":
        pytest.skip("namespaces are not permitted on this machine")


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        ("x = 1", "x = 1"),
        ("Try:\n```python\nx = 1\n```\nor\n```py\nx = 2\n```\n```\n$ python x\n```", "x = 2"),
        ("```\nx = 1\n```", "x = 1"),
        ("1. So:\n   ```python\n   if 1:\n       x = 1\n   ```", "if 1:\n    x = 1"),
        ("```Python3\nx = 1\n```\nprints\n```\n1\n```", "x = 1"),
        ("", ""),
    ],
)
def test_the_program_an_answer_commits_to(answer, source):
    assert extract_program(answer) == source


@pytest.mark.usefixtures("_sandbox")
@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("```python\ndef double(x):\n    return x + x\n```", (1.0, "correct")),
        ("def double(x): return 2 * x; print('noise')", (1.0, "correct")),
        ("def double(x): return 4", (0.0, "AssertionError")),
        ("def double(x): return x +", (0.0, "SyntaxError: invalid syntax")),
        ("import os\nos._exit(0)", (0.0, "left before the tests had run")),
        ("raise SystemExit", (0.0, "left before the tests had run")),
        ("import time\ntime.sleep(100)", (0.0, "timed out")),
        (" ", (0.0, "empty answer")),
    ],
)
def test_tests_that_run_after_the_program(answer, score):
    assert grade_program("q", TEST, answer, limits=Limits(wall_s=1.5)) == score


@pytest.mark.usefixtures("_sandbox")
def test_cases_of_input_and_output():
    good = "print(sum(map(int, input().split())), ' ')"
    assert grade_program("q", CASES, good) == (1.0, "correct")
    assert grade_program("q", CASES, "print(3)") == (
        0.0,
        "case 2: printed '3\\n', expected '10'",
    )
    assert (
        grade_program("q", CASES, "1 / 0").reason == "case 1: ZeroDivisionError: division by zero"
    )


@pytest.mark.parametrize(
    "reference",
    [
        "x",
        "[]",
        "{}",
        '{"cases": []}',
        '{"cases": [{"stdin": ""}]}',
        '{"test": 1}',
        '{"cases": 7}',
        '{"cases": ["x"]}',
        '{"cases": {"stdin": "", "stdout": ""}}',
    ],
)
def test_a_reference_that_cannot_be_used_is_the_data_s_fault(reference):
    with pytest.raises(DataError, match="question 'q'"):
        grade_program("q", reference, "x = 1")
