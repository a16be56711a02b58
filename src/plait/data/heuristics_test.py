import random

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.word_tokenizers import WordTokenizer

from plait.data.curate_settings import CategorySettings, ProseRules
from plait.data.heuristics import UNSPACED_LANGUAGES, heuristics_step, prose_fault
from plait.data.words import split_words

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


@pytest.fixture
def judge(through):
    def verdict(text, language="en", **settings):
        category = CategorySettings.parse({"installed": [{}], **settings}, "")
        metadata = {"category": "c", "language": language}
        return through([heuristics_step(category)], Document(text, "1", metadata=metadata))

    return verdict


def test_prose_is_kept(judge):
    assert judge(prose()) is None


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
def test_each_fault_has_its_name(text, reason, judge):
    assert judge(text).startswith(reason)


def test_limits_are_settings_and_may_differ_by_language(judge):
    short = prose(40)
    assert judge(short, prose={"min_words": 30}) is None
    by_language = {"de": {"min_words": 30}}
    assert judge(short, "de", prose_by_language=by_language) is None
    assert judge(short, "en", prose_by_language=by_language) == "gopher_short_doc"


def test_scripts_without_blanks_are_counted_by_letter(judge):
    assert split_words("TeX は組版 です.") == ["TeX", *"は組版です."]
    letters = [chr(code) for code in range(0x4E00, 0x4E00 + 400)]
    text = "".join(random.Random(0).choices(letters, k=600))
    text = "\n".join(text[i : i + 40] for i in range(0, 600, 40))
    assert judge(text, "zh") is None
    assert judge(text[:40], "zh") == "gopher_short_doc"


class Words(WordTokenizer):
    def word_tokenize(self, text):
        return split_words(text)

    def sent_tokenize(self, text):
        raise NotImplementedError

    span_tokenize = sent_tokenize


def datatrove_says(text, rules, language):
    """Return the verdict of datatrove's blocks with the same limits."""
    unspaced = language in UNSPACED_LANGUAGES
    scale = 2 if unspaced else 1
    blocks = [
        GopherQualityFilter(
            min_doc_words=rules.min_words,
            max_doc_words=rules.max_words,
            min_avg_word_length=0 if unspaced else rules.min_mean_word_characters,
            max_avg_word_length=rules.max_mean_word_characters,
            max_non_alpha_words_ratio=rules.min_alphabetic_words,
            min_stop_words=None,
            language=Words(),
        ),
        GopherRepetitionFilter(
            top_n_grams=tuple((scale * n, s) for n, s in rules.max_top_ngram.items()),
            dup_n_grams=tuple((scale * n, s) for n, s in rules.max_repeated_ngrams.items()),
            language=Words(),
        ),
    ]
    for block in blocks:
        verdict = block.filter(Document(text, "1"))
        if verdict is not True:
            return verdict[1]
    return None


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_verdicts_are_those_of_datatrove_s_blocks(language):
    rules, rng = ProseRules(min_words=20), random.Random(language)
    letters = VOCABULARY if language == "en" else [chr(c) for c in range(0x4E00, 0x4E18)]
    blank = " " if language == "en" else ""
    found = set()
    for _ in range(600):
        few = rng.sample(letters, rng.randrange(2, len(letters)))
        lines = [
            blank.join(rng.choices(few, k=rng.randrange(1, 30)))
            + rng.choice([".", "...", " #", ""])
            for _ in range(rng.randrange(1, 30))
        ]
        lines += rng.choices(lines, k=rng.choice([0, 0, 1, len(lines) // 4]))
        text = rng.choice(["\n", "\n\n", " "]).join(lines)
        found.add(verdict := datatrove_says(text, rules, language))
        assert prose_fault(text, rules, language) == verdict
    assert len(found) > 7
