"""Grade how well a response follows verifiable instructions: IFEval's 25 checks under their ids.

A task is a list of instruction ids with one table of arguments each, exactly as in IFEval's data
file, so that file (or LMSYS prompts augmented in its form) loads unchanged. *Strict* asks the
response as it is; *loose* also tries it without its first line, its last line, both, and without
asterisks, and takes any that passes. An empty response follows nothing. Figures are reported per
instruction and per prompt, whose instructions must all be followed.

One thing differs from the published checker on purpose: where an argument is missing or out of
range that checker draws one at random, while here the record is refused, for a reward must be the
same twice. Source: IFEval, arXiv 2311.07911.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError, validate_call

from plait.core.config import nearest
from plait.core.errors import DataError
from plait.grade.instruction import form, words
from plait.grade.score import Score

CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": words.existence,
    "keywords:frequency": words.frequency,
    "keywords:forbidden_words": words.forbidden_words,
    "keywords:letter_frequency": words.letter_frequency,
    "language:response_language": words.response_language,
    "length_constraints:number_sentences": words.number_sentences,
    "length_constraints:number_paragraphs": form.number_paragraphs,
    "length_constraints:number_words": words.number_words,
    "length_constraints:nth_paragraph_first_word": form.nth_paragraph_first_word,
    "detectable_content:number_placeholders": form.number_placeholders,
    "detectable_content:postscript": form.postscript,
    "detectable_format:number_bullet_lists": form.number_bullet_lists,
    "detectable_format:constrained_response": form.constrained_response,
    "detectable_format:number_highlighted_sections": form.number_highlighted_sections,
    "detectable_format:multiple_sections": form.multiple_sections,
    "detectable_format:json_format": form.json_format,
    "detectable_format:title": form.title,
    "combination:two_responses": form.two_responses,
    "combination:repeat_prompt": form.repeat_prompt,
    "startend:end_checker": form.end_checker,
    "startend:quotation": form.quotation,
    "change_case:capital_word_frequency": words.capital_word_frequency,
    "change_case:english_capital": words.english_capital,
    "change_case:english_lowercase": words.english_lowercase,
    "punctuation:no_comma": form.no_comma,
}
_VALIDATED = {name: validate_call(check) for name, check in CHECKS.items()}


class Verdict(NamedTuple):
    """Which instructions of one prompt a response follows, in their order."""

    strict: list[bool]
    loose: list[bool]


class Accuracies(NamedTuple):
    """IFEval's four figures, each a share in [0, 1]."""

    prompt_strict: float
    instruction_strict: float
    prompt_loose: float
    instruction_loose: float


def check_instructions(
    instruction_ids: Sequence[str], arguments: Sequence[Mapping[str, Any]], response: str
) -> Verdict:
    """Check a response against instructions; an argument that is None counts as not given.

    Raises: DataError for an unknown id, or arguments that are unknown, missing or out of range.
    """
    if len(instruction_ids) != len(arguments):
        raise DataError(
            f"{len(instruction_ids)} instructions with {len(arguments)} tables of arguments; "
            "each instruction needs one, {} if it takes none"
        )
    pairs = list(zip(instruction_ids, arguments, strict=True))
    loose = _loosened(response)
    return Verdict(
        [_follows(name, table, [response]) for name, table in pairs],
        [_follows(name, table, loose) for name, table in pairs],
    )


def grade_instruction(question: str, reference: str, answer: str) -> Score:
    """Score the share of instructions that the answer follows strictly, naming those it breaks.

    `reference` is JSON: `{"instruction_id_list": [...], "kwargs": [{...}, ...]}`, IFEval's keys.
    Raises: DataError if it is not, or as `check_instructions`; the message names the question.
    """
    try:
        record = json.loads(reference)
        names, arguments = list(record["instruction_id_list"]), list(record["kwargs"])
        well_formed = all(isinstance(name, str) for name in names) and all(
            isinstance(table, dict) for table in arguments
        )
    except (ValueError, KeyError, TypeError):
        well_formed = False
    if not well_formed:
        raise DataError(
            f"reference {reference!r} of the question {question!r} is not JSON with the keys "
            "instruction_id_list and kwargs, a list of texts and one of tables"
        )
    if not names:
        raise DataError(f"the question {question!r} names no instruction to check")
    try:
        followed = check_instructions(names, arguments, answer).strict
    except DataError as error:
        raise DataError(f"question {question!r}: {error}") from None
    broken = [name for name, good in zip(names, followed, strict=True) if not good]
    reason = "does not follow " + ", ".join(broken) if broken else "correct"
    return Score(sum(followed) / len(followed), reason if answer.strip() else "empty answer")


def accuracies(verdicts: Iterable[Verdict]) -> Accuracies:
    """Average verdicts over prompts and over instructions.

    Raises: DataError if there are none.
    """
    verdicts = list(verdicts)
    num_instructions = sum(len(verdict.strict) for verdict in verdicts)
    if not num_instructions:
        raise DataError("no instruction was checked, so there is no accuracy")
    return Accuracies(
        sum(all(v.strict) for v in verdicts) / len(verdicts),
        sum(sum(v.strict) for v in verdicts) / num_instructions,
        sum(all(v.loose) for v in verdicts) / len(verdicts),
        sum(sum(v.loose) for v in verdicts) / num_instructions,
    )


def _follows(name: str, arguments: Mapping[str, Any], responses: list[str]) -> bool:
    if name not in _VALIDATED:
        raise DataError(f"unknown instruction {name!r}; {nearest(name, list(CHECKS))}")
    check = _VALIDATED[name]
    given = {key: value for key, value in arguments.items() if value is not None}
    try:
        check("", **given)  # an empty response follows nothing, yet its arguments are checked
        return any(check(response, **given) for response in responses if response.strip())
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}"
            for detail in error.errors()
        )
        raise DataError(f"instruction {name!r} with arguments {given}: {problems}") from None


def _loosened(response: str) -> list[str]:
    """Return the response and what is left without first line, last line, both, and asterisks."""
    lines = response.split("\n")
    cut = [
        response,
        "\n".join(lines[1:]).strip(),
        "\n".join(lines[:-1]).strip(),
        "\n".join(lines[1:-1]).strip(),
    ]
    return list(dict.fromkeys([*cut, *(text.replace("*", "") for text in cut)]))
