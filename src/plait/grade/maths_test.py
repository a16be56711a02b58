import json
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from plait.core.errors import ConfigError, DataError
from plait.grade import maths
from plait.grade.maths import Verifiers, extract_answer, grade_maths

needs_math_verify = pytest.mark.skipif(
    "not __import__('importlib.util').util.find_spec('math_verify')", reason="no math-verify"
)


@pytest.mark.parametrize(
    ("answer", "expression"),
    [
        ("5", "5"),
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\left\{1,2\right\}}", r"\left\{1,2\right\}"),
        ("work\n#### 1,024", "1,024"),
        ("The answer is 4. The answer is $x^2$, since", "x^2"),
        ("**Answer:** 7.", "7"),
        ("$a$ and $b$", "b"),
        (r"thus \(3\)", "3"),
        ("so\n(1, 2)", "(1, 2)"),
        ("there are 12 apples", None),
        ("The answer is $5$ for all $x$.", "5"),
        ("The answer is $5$, because $x > 0$.", "5"),
        ("The answer is 4 for $n = 2$.", "4"),
        ("Answer: 1,024 apples, for $2^{10}$ is that", "1,024"),
        ("Answer: $7$ (mod $10$)", "7"),
        ("The answer is $18 (that is $10 + $8).", None),
        (r"The final answer is $\$18.90$.", r"\$18.90"),
        (r"The answer is 3 $\pi$", r"\pi"),
        ("The answer is 3 x + 1", "3 x + 1"),
        ("The answer is 12 if n is odd", "12"),
        (r"**Answer:** 4, where $k \ge 1$", "4"),
        (r"The answer is the set $\{1, 2\}$.", r"\{1, 2\}"),
        ("so $ x + 1 $ it is", "x + 1"),
        ("thus $$\nx + 1\n$$\nas said", "x + 1"),
        ("", None),
    ],
)
def test_the_expression_an_answer_commits_to(answer, expression):
    assert extract_answer(answer) == expression


@needs_math_verify
@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("1/2", r"so it is \boxed{0.5}"),
        (r"\frac{3}{4}", "The answer is $0.75$."),
        ("(1, 2)", r"\boxed{(1,2)}"),
        ("(1, 2)", "(1,2)"),
        (r"\{1, 2\}", r"\boxed{\{2,1\}}"),
        ("x^2 + 2x + 1", "$(x+1)^2$"),
        ("18", "The answer is $18 (that is $10 + $8)."),
        ("18.90", r"The final answer is $\$18.90$."),
        ("work\n#### 1,024", "It took 1024 apples in the end"),
        (r"\text{B}", r"\boxed{B}"),
        ("[0, 1)", r"\boxed{[0,1)}"),
        (r"\sqrt{2}/2", r"\boxed{\frac{1}{\sqrt{2}}}"),
    ],
)
def test_equal_values_are_equal_however_written(reference, answer):
    assert grade_maths("q", reference, answer) == (1.0, "correct")


@needs_math_verify
@pytest.mark.parametrize(
    ("reference", "answer", "reason"),
    [
        ("1/2", r"\boxed{0.6}", "answered 0.6, expected 1/2"),
        ("(1, 2)", r"\boxed{(2,1)}", "answered (2,1), expected (1, 2)"),
        ("[0, 1)", r"\boxed{[0,1]}", "answered [0,1], expected [0, 1)"),
        ("5", " ", "empty answer"),
        ("5", "I do not know", "no expression in the answer"),
    ],
)
def test_wrong_answers_score_zero_with_the_reason(reference, answer, reason):
    assert grade_maths("q", reference, answer) == (0.0, reason)


@needs_math_verify
def test_a_reference_without_an_expression_is_the_data_s_fault():
    with pytest.raises(DataError, match="question 'q'"):
        grade_maths("q", "", "5")


@needs_math_verify
def test_a_number_without_end_is_given_up_and_the_pool_survives():
    verifiers = Verifiers(num_workers=1)
    assert verifiers.verify("1", r"\boxed{9^{9^{9^{9^9}}}}", timeout_s=0.5) == "timed out"
    assert verifiers.verify("1", r"\boxed{1.0}", timeout_s=30.0) == "equal"
    verifiers.close()


# A verifier that hangs, dies or says nothing where the answer asks for it.
UNRELIABLE = """
import json, os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    answer = json.loads(line)["answer"]
    if "hang" in answer:
        time.sleep(1000)
    if "crash" in answer:
        os.abort()
    print("equal", flush=True)
"""


def test_a_verifier_that_hangs_or_crashes_is_replaced(monkeypatch):
    verifiers = Verifiers(2, [sys.executable, "-c", UNRELIABLE])
    answers = ["fine", "hang", "crash", "fine", "hang", "fine", "crash", "crash", "fine"]
    expected = {"fine": "equal", "hang": "timed out", "crash": "crashed"}
    with ThreadPoolExecutor(4) as threads:
        verdicts = list(threads.map(lambda a: verifiers.verify("1", a, timeout_s=0.5), answers))
    assert verdicts == [expected[answer] for answer in answers]
    monkeypatch.setattr(maths, "_shared_verifiers", lambda: verifiers)
    monkeypatch.setattr(maths, "TIMEOUT_S", 0.5)
    hung = grade_maths("q", "1", r"\boxed{hang}")
    assert hung == (0.0, "comparing hang with 1 took longer than 0.5 s")
    assert grade_maths("q", "1", r"\boxed{crash}") == (0.0, "the verifier crashed on crash")
    verifiers.close()
    assert verifiers.verify("1", "fine") == "equal"
    verifiers.close()


def test_a_verifier_that_cannot_start_is_named():
    with pytest.raises(ConfigError, match=r"pip install 'plait\[align\]'"):
        Verifiers(1, [sys.executable, "-c", "raise SystemExit"]).verify("1", "1")


@needs_math_verify
def test_gsm8k_s_own_answers_are_right_and_others_wrong(task_data):
    lines = (task_data / "gsm8k/test.jsonl").read_text().splitlines()[:60]
    rows = [json.loads(line) for line in lines]
    for row, other in pairwise(rows):
        assert grade_maths(row["question"], row["answer"], row["answer"]).value == 1
        same = row["answer"].split("####")[1].strip() == other["answer"].split("####")[1].strip()
        assert grade_maths(row["question"], row["answer"], other["answer"]).value == same
