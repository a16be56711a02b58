import random

import pytest
from datatrove.data import Document

from plait.data.curate_settings import CategorySettings, CodeRules
from plait.data.filters import HeuristicFilter, code_fault
from plait.data.words import WORDS

VOCABULARY = [
    *("water", "mountain", "the", "and", "of", "river", "with", "under", "morning", "people"),
    *("between", "house", "light", "every", "other", "small", "garden", "stone", "winter", "of"),
    *("the", "a", "in", "that", "walk", "bring", "carry", "always", "never", "perhaps", "summer"),
]


def prose(num_words=200, seed=0):
    words = random.Random(seed).choices(VOCABULARY, k=num_words)
    return "\n".join(" ".join(words[i : i + 12]) + "." for i in range(0, num_words, 12))


LINES = prose(120).split("\n")
SHORT_LINES = [" ".join(VOCABULARY[i : i + 3]) for i in range(0, 30, 3)]


def judge(text, language="en", **settings):
    category = CategorySettings.parse({"installed": [{}], **settings}, "")
    doc = Document(text, "1", metadata={"category": "c", "language": language})
    return HeuristicFilter({"c": category}).filter(doc)


def test_prose_is_kept():
    assert judge(prose()) is True


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (prose(40), "gopher_short_doc"),
        ("a b c d " * 40, "gopher_below_avg_threshold"),
        ("internationalisation " * 60, "gopher_above_avg_threshold"),
        (prose().replace(" ", " # "), "gopher_too_many_hashes"),
        ("\n".join("- " + line for line in prose().split("\n")), "gopher_too_many_bullets"),
        (prose().replace(".", "..."), "gopher_too_many_end_ellipsis"),
        (prose().replace(" ", " 1234 "), "gopher_below_alpha_threshold"),
        (prose() + "\nthis line is said again" * 12, "dup_line_frac"),
        ("\n".join([*SHORT_LINES, *LINES[:3], *LINES[:3]]), "dup_line_char_frac"),
        ("\n\n".join(prose(n, n) for n in (120, 36, 48, 120)), "dup_para_char_frac"),
        (" ".join(f"{word} river stone" for word in VOCABULARY * 2), "top_2_gram"),
        (prose(300, 1).replace("water", "very small house of the stone garden"), "duplicated_"),
    ],
)
def test_each_fault_has_its_name(text, reason):
    keep, found = judge(text)
    assert keep is False
    assert found.startswith(reason)


def test_limits_are_settings_and_may_differ_by_language():
    short = prose(40)
    assert judge(short, prose={"min_words": 30}) is True
    by_language = {"de": {"min_words": 30}}
    assert judge(short, "de", prose_by_language=by_language) is True
    assert judge(short, "en", prose_by_language=by_language) == (False, "gopher_short_doc")


def test_scripts_without_blanks_are_counted_by_letter():
    assert WORDS.word_tokenize("TeX は組版 です.") == ["TeX", *"は組版です."]
    letters = [chr(code) for code in range(0x4E00, 0x4E00 + 400)]
    text = "".join(random.Random(0).choices(letters, k=600))
    text = "\n".join(text[i : i + 40] for i in range(0, 600, 40))
    assert judge(text, "zh") is True
    assert judge(text[:40], "zh") == (False, "gopher_short_doc")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\n" * 30, None),
        ("x = 1", "code_too_short"),
        ("x = 1\n" * 200_000, "code_too_long"),
        ("x = 1\n" * 30 + "y" * 1001, "code_long_line"),
        ("z" * 300 + "\n" + "w" * 300, "code_long_lines"),
        ("{ } [ ] ;\n" * 30, "code_few_letters"),
    ],
)
def test_code_rules(text, reason):
    assert code_fault(text, CodeRules()) == reason
    expected = True if reason is None else (False, reason)
    assert judge(text, "python", content="code") == expected
