import json

import pytest

from plait.core.errors import DataError
from plait.grade.instruction.grade import (
    CHECKS,
    Verdict,
    accuracies,
    check_instructions,
    grade_instruction,
)

AT_LEAST_2 = {"relation": "at least"}
# One response that follows each instruction, one that breaks it.
CASES = [
    ("keywords:existence", {"keywords": ["river", "Sun"]}, "sunny Rivers", "sunny"),
    ("keywords:frequency", {"keyword": "do", "frequency": 2, **AT_LEAST_2}, "Do it, do", "do"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "category", "a Cat."),
    (
        "keywords:letter_frequency",
        {"letter": "Q", "let_frequency": 2, "let_relation": "less than"},
        "queen",
        "queen Q",
    ),
    (
        "language:response_language",
        {"language": "de"},
        "Das ist ein ganz einfacher deutscher Satz über das Wetter.",
        "This is a perfectly simple English sentence about the weather.",
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, **AT_LEAST_2},
        "Mr. Li came. He left.",
        "Mr. Li came.",
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        "a\n***\nb",
        "a\n***\n\n***\nb",
    ),
    ("length_constraints:number_words", {"num_words": 2, **AT_LEAST_2}, "a-b", "ab"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
        "a\n\n'Weekend, b",
        "a\n\nThe weekend",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b]", "[a]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "a\np. s. b", "PS b"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n - b", "* a\n** b"),
    ("detectable_format:constrained_response", {}, "So: My answer is no.", "my answer is no."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* **b**", "**a"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "PART", "num_sections": 2},
        "PART 1\na\nPART 2\nb",
        "PART 1\na\nPart 2\nb",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<a>>\nb", "<< >>"),
    ("combination:two_responses", {}, "a\n******\nb", "a ****** a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say IT. it", "It: Say it."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'a "the end."', "The end. a"),
    ("startend:quotation", {}, ' "a" ', '"a'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "ONE two",
        "ONE DON'T",
    ),
    ("change_case:english_capital", {}, "THIS IS THE WEATHER FORECAST.", "THIS is English"),
    ("change_case:english_lowercase", {}, "this is the weather forecast.", "this is English"),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
]


def test_all_25_have_a_case():
    assert len(CHECKS) == 25
    assert [case[0] for case in CASES] == list(CHECKS)


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES)
def test_each_check_passes_and_fails(name, arguments, good, bad):
    verdict = check_instructions([name], [{**arguments, "unused": None}], good)
    assert verdict == Verdict([True], [True])
    assert check_instructions([name], [arguments], bad).strict == [False]
    assert check_instructions([name], [arguments], " \n") == Verdict([False], [False])


def test_loose_forgives_a_preamble_and_asterisks():
    assert check_instructions(["startend:quotation"], [{}], 'Sure:\n*"a"*\nDone') == Verdict(
        [False], [True]
    )


def test_the_score_is_the_share_followed_and_names_what_is_not():
    reference = json.dumps(
        {
            "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
            "kwargs": [{}, {}],
        }
    )
    assert grade_instruction("q", reference, '"a"') == (1.0, "correct")
    assert grade_instruction("q", reference, "a") == (0.5, "does not follow startend:quotation")
    assert grade_instruction("q", reference, "") == (0.0, "empty answer")


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        (["punctuation:nocomma"], [{}], "did you mean 'punctuation:no_comma'"),
        (["punctuation:no_comma"], [], "1 instructions with 0 tables"),
        (["punctuation:no_comma"], [{"n": 1}], "n: Unexpected keyword"),
        (["keywords:existence"], [{}], "keywords: Missing required"),
        (["keywords:existence"], [{"keywords": []}], "keywords: List should have at least 1"),
        (["length_constraints:number_words"], [{"num_words": -1, **AT_LEAST_2}], "greater than"),
        (
            ["length_constraints:number_words"],
            [{"num_words": 1, "relation": "most"}],
            "'less than' or 'at least'",
        ),
    ],
)
def test_bad_records_are_the_data_s_fault(names, arguments, message):
    with pytest.raises(DataError, match=message):
        check_instructions(names, arguments, "")


@pytest.mark.parametrize(
    "reference",
    [
        "x",
        "[]",
        "{}",
        '{"instruction_id_list": [], "kwargs": []}',
        '{"instruction_id_list": ["punctuation:no_comma"], "kwargs": 5}',
        '{"instruction_id_list": ["punctuation:no_comma"], "kwargs": [5]}',
        '{"instruction_id_list": [["x"]], "kwargs": [{}]}',
    ],
)
def test_a_reference_that_is_no_record_is_refused(reference):
    with pytest.raises(DataError, match="question 'q'"):
        grade_instruction("q", reference, "a")


def test_accuracies_count_prompts_and_instructions():
    verdicts = [Verdict([True, False], [True, True]), Verdict([True], [True])]
    assert accuracies(verdicts) == (0.5, 2 / 3, 1.0, 1.0)
    with pytest.raises(DataError, match="no instruction"):
        accuracies([])
