import pytest

from plait.core.errors import DataError
from plait.grade.reply import grade_reply
from plait.grade.verifiers import load_verifier, verifier_place

REFERENCE = '{"name": "Anna", "thing": "lamp"}'


@pytest.mark.parametrize(
    ("answer", "lacking"),
    [
        ("Hello Anna. The lamp is late. Thank you.", set()),
        ("Dear Anna.\nThe lamp is late.\nKind regards.", set()),
        ("Hello Omar. The lamp is late. Thank you.", {"greets"}),
        ("Hello Anna. The lamps are late. Thank you.", {"subject"}),
        ("Hello Anna. The lamp is late.", {"closes"}),
        ("Hello Anna. The lamp is late. Thank you. Thank you.", {"once"}),
        ("Hello Anna. The lamp. It is late. Sorry. Thank you.", {"short"}),
        ("Thank you. " * 9, {"greets", "subject", "once", "short"}),
        ("", {"greets", "subject", "closes", "once", "short"}),
    ],
)
def test_each_quality_counts_a_fifth(answer, lacking):
    score = grade_reply("", REFERENCE, answer)
    assert score.value == pytest.approx(1 - len(lacking) / 5)
    named = set(score.reason.removeprefix("lacks: ").split(", ")) - {"correct"}
    assert named == lacking


def test_it_is_a_verifier_and_names_a_bad_reference():
    assert load_verifier(verifier_place("reply")) is grade_reply
    with pytest.raises(DataError, match="is no"):
        grade_reply("", '["Anna"]', "Hello")
