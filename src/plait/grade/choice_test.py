import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.core.errors import DataError
from plait.grade.choice import extract_choice, grade_choice


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "(B)",
        " **B** ",
        "B.",
        "B) the second",
        "**B**: because it is",
        "Some words.\nB",
        "The answer is B.",
        "the correct answer is (B), not A",
        "Answer: B",
        "**Answer:** B",
        "ANSWER IS: **B**",
        "The answer is option B",
        "A) x\nC) z\nThe answer is B because y is prime",
        "I think A.\nFinal answer: $B$",
        r"so \boxed{B}",
        r"\boxed{A}, no: $\boxed{\text{(B)}}$",
        r"\boxed{\text{B) the second}}",
        r"\boxed{\mathrm{B}}",
        "The answer is A. No, the answer is B.",
        "The answer is B because 2 + 2 = 4",
    ],
)
def test_the_letter_an_answer_commits_to(answer):
    assert extract_choice(answer) == "B"
    assert grade_choice("q", "B", answer) == (1.0, "correct")
    assert grade_choice("q", "(c)", answer) == (0.0, "chose B, expected C")


@pytest.mark.parametrize(
    "answer",
    [
        "A good question",
        "I would say so",
        "The answer is A good one",
        "The answer is I'm not sure",
        "Both A and B",
        r"\boxed{42}",
        r"\boxed{",
        "The answer is Bern",
    ],
)
def test_a_letter_inside_a_sentence_is_no_choice(answer):
    assert grade_choice("q", "A", answer) == (0.0, "no choice in the answer")


@pytest.mark.parametrize("reason", ["because 2 + 2 = 4", "since it is", "as shown", "is right"])
def test_a_and_i_before_a_reason_are_choices(reason):
    for letter in "AI":
        assert extract_choice(f"The correct answer is {letter} {reason}") == letter


def test_blank_lines_do_not_stall_the_grader():
    for text in ("The answer is:" + "\n" * 4000, "\n" * 4000, "answer" + " " * 4000):
        started = time.perf_counter()
        assert extract_choice(text) is None
        assert time.perf_counter() - started < 2  # 4,000 in cubic time: minutes


def test_bad_input():
    assert grade_choice("q", "A", " ") == (0.0, "empty answer")
    with pytest.raises(DataError, match="reference 'AB' of the question 'q'"):
        grade_choice("q", "AB", "A")


@given(st.text() | st.text("\\boxed{}AB answer is:\n(*"))
def test_no_answer_crashes_the_grader(answer):
    assert grade_choice("q", "A", answer).value in (0, 1)
