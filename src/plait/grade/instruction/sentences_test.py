import pytest

from plait.grade.instruction.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" \n ", []),
        ("no mark at all", ["no mark at all"]),
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("It is 3.5 m. Then 1,000.25.", ["It is 3.5 m.", "Then 1,000.25."]),
        ("Dr. John F. K. Ng spoke. He left.", ["Dr. John F. K. Ng spoke.", "He left."]),
        ("Buy packet B. How much?", ["Buy packet B.", "How much?"]),
        ('He said "Go." Then left.', ['He said "Go."', "Then left."]),
        ("Wait... what? Yes... No.", ["Wait... what?", "Yes...", "No."]),
        ("Come at 5 p.m. or later.", ["Come at 5 p.m. or later."]),
        ("Come at 5 p.m. Or later.", ["Come at 5 p.m.", "Or later."]),
        ("line one\nline two.\nthree", ["line one\nline two.", "three"]),
        ("(1. do not; 2. the rest)", ["(1. do not; 2. the rest)"]),
        ("See plait.org. Fine.", ["See plait.org.", "Fine."]),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences
