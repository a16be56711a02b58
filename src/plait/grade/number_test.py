from decimal import Decimal

import pytest

from plait.core.errors import DataError
from plait.grade.number import extract_number, grade_number


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("7", "7"),
        ("It is 8.", "8"),
        ("First 3, then 5, so 8", "8"),
        ("The answer is 4, not 9.", "4"),
        ("The answer is 4. No: the answer\nis 6.", "6"),
        ("ANSWER IS: **-12**", "-12"),
        ("1,024 apples", "1024"),
        ("1,2,3", "3"),
        ("3.50.", "3.50"),
        ("5-3", "3"),
        ("x=+2", "2"),
        ("digits (0)", "0"),
    ],
)
def test_the_number_an_answer_commits_to(answer, number):
    assert extract_number(answer) == Decimal(number)


@pytest.mark.parametrize(
    "answer", ["", "none", "A7", "7th", "version1", "1e5", "1.5kg", "1,024kg", "v 1.2.3"]
)
def test_no_number_is_read_into_words(answer):
    assert extract_number(answer) is None


def test_a_number_before_the_marker_does_not_count():
    assert extract_number("I get 5, so the answer is unclear") is None


@pytest.mark.parametrize("answer", ["07", "7.0", "+7", "the answer is 7"])
def test_equal_values_are_equal_however_written(answer):
    assert grade_number("q", "7", answer) == (1.0, "correct")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("17", "answered 17, expected 7"),
        ("-7", "answered -7, expected 7"),
        (" \n", "empty answer"),
        ("seven", "no number in the answer"),
    ],
)
def test_wrong_and_malformed_answers_score_zero_with_the_reason(answer, reason):
    assert grade_number("q", "7", answer) == (0.0, reason)


def test_a_reference_without_a_number_is_the_data_s_fault():
    with pytest.raises(DataError, match="reference 'seven' of the question 'how many' holds no"):
        grade_number("how many", "seven", "7")
