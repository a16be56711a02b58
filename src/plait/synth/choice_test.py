import pytest

from plait.synth.choice import Choice, check_choice, right_option
from plait.synth.client import Unusable
from plait.synth.reasoning import _named_option


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("B", 1),
        ("(b) Chlorophyll", 1),
        ("c.", 2),
        ("D: Light", 3),
        ("chlorophyll", 1),  # begins with a C
        ("A", 0),
        ("A dog", None),
        ("E", None),
        ("", None),
    ],
)
def test_an_answer_is_a_letter_or_an_option_in_words(answer, place):
    options = ["Apple", "Chlorophyll", "Water", "Light"]
    filled = Choice(question="What is green?", options=options, answer=answer)
    if place is None:
        with pytest.raises(Unusable, match="answer_is_no_option"):
            check_choice(filled)
    else:
        assert right_option(filled) == place


def test_an_article_is_no_vote():
    assert _named_option("ABC", "the answer is (b), no: the Answer is: **C**")[0] == "C"
    with pytest.raises(Unusable, match="names_no_option"):
        _named_option("ABC", "so the answer is a triangle")
