"""People's prompts with instructions that can be checked, as the report's instruction RL has them.

    Why is the sky blue?            ->  Why is the sky blue? Do not use any commas. Your answer
                                        must have at least 3 sentences.

One to three of IFEval's 25 kinds are drawn and put behind a prompt; the reference names them under
IFEval's ids, which the verifier `instruction` reads. The report takes 16,000 prompts of LMSYS this
way (section 3.2); which instructions, and in what words, is our choice. Kinds of one group
contradict each other or touch the same place, so a prompt has at most one of a group; those in
`ALONE` decide the whole answer.
"""

import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from plait.core.seed import mix_seed

MAX_INSTRUCTIONS = 3
WORDS = (
    "reason", "time", "change", "result", "water", "simple", "often", "between", "important",
    "example", "city", "story", "question", "light", "future", "common", "learn", "method",
    "value", "different",
)  # fmt: skip
ENDINGS = ("That is all for now.", "Is there anything else?", "I hope this helps.")
LANGUAGES = {
    "de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "ja": "Japanese",
    "ko": "Korean", "pt": "Portuguese",
}  # fmt: skip
RELATIONS = ("less than", "at least")


class Kind(NamedTuple):
    """One kind of instruction."""

    group: str
    wording: str
    """With the arguments' names in braces."""
    draw: Callable[[random.Random, str], dict[str, Any]] = lambda rng, prompt: {}
    """Its arguments, which may depend on the prompt."""


def _counts(name: str, relation: str, *choices: int) -> Callable[..., dict[str, Any]]:
    return lambda rng, _: {name: rng.choice(choices), relation: rng.choice(RELATIONS)}


def _one(name: str, *choices: Any) -> Callable[..., dict[str, Any]]:
    return lambda rng, _: {name: rng.choice(choices)}


def _word_often(rng: random.Random, _: str) -> dict[str, Any]:
    drawn = {"keyword": rng.choice(WORDS), "frequency": rng.randint(2, 4)}
    return {**drawn, "relation": rng.choice(RELATIONS)}


def _letter_often(rng: random.Random, _: str) -> dict[str, Any]:
    drawn = {"letter": rng.choice("abcdefghilmnoprstuw"), "let_frequency": rng.randint(4, 20)}
    return {**drawn, "let_relation": rng.choice(RELATIONS)}


def _first_word(rng: random.Random, _: str) -> dict[str, Any]:
    number = rng.randint(2, 4)
    place = {"num_paragraphs": number, "nth_paragraph": rng.randint(1, number)}
    return {**place, "first_word": rng.choice(WORDS)}


KINDS = {
    "keywords:existence": Kind(
        "words",
        "Use the words {keywords}.",
        lambda rng, _: {"keywords": rng.sample(WORDS, rng.randint(1, 3))},
    ),
    "keywords:frequency": Kind(
        "words", "The word {keyword} must appear {relation} {frequency} times.", _word_often
    ),
    "keywords:forbidden_words": Kind(
        "words",
        "Do not use the words {forbidden_words}.",
        lambda rng, _: {"forbidden_words": rng.sample(WORDS, rng.randint(1, 3))},
    ),
    "keywords:letter_frequency": Kind(
        "words", "The letter {letter} must appear {let_relation} {let_frequency} times.",
        _letter_often,
    ),
    "language:response_language": Kind(
        "case",
        "Answer in {language} and in no other language.",
        lambda rng, _: {"language": rng.choice(list(LANGUAGES))},
    ),
    "length_constraints:number_sentences": Kind(
        "length", "Your answer must have {relation} {num_sentences} sentences.",
        _counts("num_sentences", "relation", 3, 5, 8, 12),
    ),
    "length_constraints:number_words": Kind(
        "length", "Your answer must have {relation} {num_words} words.",
        _counts("num_words", "relation", 50, 100, 200, 300),
    ),
    "length_constraints:number_paragraphs": Kind(
        "shape", "Write {num_paragraphs} paragraphs, divided by the line ***.",
        _one("num_paragraphs", 2, 3, 4, 5),
    ),
    "length_constraints:nth_paragraph_first_word": Kind(
        "shape",
        "Write {num_paragraphs} paragraphs, divided by one blank line each. Paragraph "
        "{nth_paragraph} must start with the word {first_word}.",
        _first_word,
    ),
    "detectable_content:number_placeholders": Kind(
        "marks", "Leave at least {num_placeholders} places to fill in, such as [name].",
        _one("num_placeholders", 1, 2, 3, 4),
    ),
    "detectable_content:postscript": Kind(
        "edges", "Add a postscript that starts with {postscript_marker}",
        _one("postscript_marker", "P.S.", "P.P.S"),
    ),
    "detectable_format:number_bullet_lists": Kind(
        "shape", "Give exactly {num_bullets} bullet points, each a line that starts with *.",
        _one("num_bullets", 2, 3, 4, 5),
    ),
    "detectable_format:constrained_response": Kind(
        "shape", "Answer with one of: My answer is yes. My answer is no. My answer is maybe."
    ),
    "detectable_format:number_highlighted_sections": Kind(
        "marks", "Highlight at least {num_highlights} parts like *this*.",
        _one("num_highlights", 1, 2, 3, 4),
    ),
    "detectable_format:multiple_sections": Kind(
        "shape",
        "Divide your answer into at least {num_sections} sections, headed {section_spliter} 1, "
        "{section_spliter} 2 and so on.",
        lambda rng, _: {
            "section_spliter": rng.choice(["Section", "SECTION"]),
            "num_sections": rng.randint(2, 4),
        },
    ),
    "detectable_format:json_format": Kind("shape", "The whole answer must be JSON."),
    "detectable_format:title": Kind("title", "Give your answer a title, written <<title>>."),
    "combination:two_responses": Kind(
        "shape", "Give two different answers, divided by the line ******."
    ),
    "combination:repeat_prompt": Kind(
        "shape",
        "First repeat the request above word for word, then answer it.",
        lambda _, prompt: {"prompt_to_repeat": prompt},
    ),
    "startend:end_checker": Kind(
        "edges", "The very last words of your answer must be: {end_phrase}",
        _one("end_phrase", *ENDINGS),
    ),
    "startend:quotation": Kind("edges", "Put the whole answer in double quotation marks."),
    "change_case:capital_word_frequency": Kind(
        "case",
        "Words in capital letters must appear {capital_relation} {capital_frequency} times.",
        _counts("capital_frequency", "capital_relation", 2, 4, 6),
    ),
    "change_case:english_capital": Kind("case", "Answer in English and in capital letters only."),
    "change_case:english_lowercase": Kind("case", "Answer in English and in small letters only."),
    "punctuation:no_comma": Kind("punctuation", "Do not use any commas."),
}  # fmt: skip
ALONE = {
    "detectable_format:constrained_response",
    "detectable_format:json_format",
    "combination:repeat_prompt",
}


def instructed(prompt: str) -> dict[str, Any]:
    """Return a prompt with instructions behind it: `prompt`, `verifier`, `reference`.

    Which ones depends on the prompt alone, so a file gives the same prompts every time.
    """
    rng = random.Random(mix_seed("instructed", prompt))
    names, groups = list(KINDS), set()
    rng.shuffle(names)
    wanted, chosen = rng.randint(1, MAX_INSTRUCTIONS), []
    for name in names:
        if len(chosen) == wanted:
            break
        if KINDS[name].group not in groups and not (name in ALONE and chosen):
            chosen.append(name)
            groups.add(KINDS[name].group)
        if name in ALONE and name in chosen:
            break
    arguments = [KINDS[name].draw(rng, prompt) for name in chosen]
    asked = [
        KINDS[name].wording.format(**_spoken(each))
        for name, each in zip(chosen, arguments, strict=True)
    ]
    reference = {"instruction_id_list": chosen, "kwargs": arguments}
    return {
        "prompt": [{"role": "user", "content": f"{prompt}\n\n{' '.join(asked)}"}],
        "verifier": "instruction",
        "reference": json.dumps(reference),
    }


def _spoken(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments as a sentence has them: lists with commas, languages by name."""
    return {
        name: ", ".join(value) if isinstance(value, list) else LANGUAGES.get(value, value)
        for name, value in arguments.items()
    }
