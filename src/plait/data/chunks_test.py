import random

import pytest

from plait.data.chunks import chunks, count_tokens


def test_tokens_are_symbols_and_four_letters():
    assert count_tokens(r"\alpha + 12345") == 1 + 2 + 1 + 2


@pytest.mark.parametrize("seed", range(20))
def test_chunks_are_the_text_and_fit(seed):
    rng = random.Random(seed)
    alphabet = ["word ", "x+y", "\n", "\n\n", "\t", r"\frac{a}{b}", "é", "漢字", "   "]
    text = "".join(rng.choices(alphabet, k=rng.choice([0, 1, 10, 300])))
    for limit in (1, 7, 50, 10_000):
        made = chunks(text, limit)
        assert "".join(made) == text
        assert all(0 < count_tokens(chunk) <= limit for chunk in made if chunk.strip())


def test_breaks_fall_between_paragraphs_then_lines_then_words():
    assert chunks("a b\n\nc d\n\ne", 4) == ["a b\n\nc d\n\n", "e"]
    assert chunks("a b\nc d\ne", 2) == ["a b\n", "c d\n", "e"]
    assert chunks("aaaa bbbb cccc", 2) == ["aaaa bbbb ", "cccc"]
    assert chunks("x" * 40, 5) == ["x" * 20, "x" * 20]
