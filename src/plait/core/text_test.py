import pytest

from plait.core.text import is_unicode


@pytest.mark.parametrize(
    ("text", "whole"),
    [("", True), ("é \U0001f600", True), ("\ud83d\ude00", False), ("a\udce9", False)],
)
def test_half_of_a_surrogate_pair_is_no_unicode(text, whole):
    assert is_unicode(text) == whole
