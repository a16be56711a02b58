"""IFEval's checks of form: paragraphs, lists, sections, markup, JSON, beginning and end.

Each check takes the response and the instruction's own arguments, under IFEval's names, and says
whether the response follows it.
"""

import json
import re
from typing import Annotated

from pydantic import Field

from plait.grade.instruction.words import Count, Text

CONSTRAINED_RESPONSES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

_POSTSCRIPTS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}


def number_paragraphs(response: str, *, num_paragraphs: Count) -> bool:
    """Exactly so many paragraphs divided by ***; an empty one inside fails."""
    first, *inner = re.split(r"\s?\*\*\*\s?", response)
    last = [inner.pop()] if inner else []
    if not all(paragraph.strip() for paragraph in inner):
        return False
    return sum(bool(p.strip()) for p in [first, *inner, *last]) == num_paragraphs


def nth_paragraph_first_word(
    response: str,
    *,
    num_paragraphs: Count,
    nth_paragraph: Annotated[int, Field(ge=1)],
    first_word: Text,
) -> bool:
    """Exactly so many paragraphs divided by blank lines, and the n-th begins with the word."""
    paragraphs = response.split("\n\n")
    filled = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if filled != num_paragraphs or nth_paragraph > filled:
        return False
    words = paragraphs[nth_paragraph - 1].split()
    if not words:
        return False
    found = re.split(r"""[.,?!'"]""", words[0].lstrip("'").lstrip('"'))[0]
    return found.lower() == first_word.lower()


def number_placeholders(response: str, *, num_placeholders: Count) -> bool:
    """At least so many [placeholders]."""
    return len(re.findall(r"\[.*?\]", response)) >= num_placeholders


def postscript(response: str, *, postscript_marker: Text) -> bool:
    """A postscript begins with the marker, whatever its case."""
    marker = postscript_marker.strip()
    pattern = _POSTSCRIPTS.get(marker) or re.escape(marker.lower())
    return re.search(pattern, response.lower()) is not None


def number_bullet_lists(response: str, *, num_bullets: Count) -> bool:
    """Exactly so many lines that begin with * or -."""
    stars = re.findall(r"^\s*\*[^\*].*$", response, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", response, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def constrained_response(response: str) -> bool:
    """One of the three allowed answers is given."""
    return any(option in response for option in CONSTRAINED_RESPONSES)


def number_highlighted_sections(response: str, *, num_highlights: Count) -> bool:
    """At least so many *highlighted* or **highlighted** pieces of one line."""
    single = [h.strip("*") for h in re.findall(r"\*[^\n\*]*\*", response)]
    double = [h[2:-2] for h in re.findall(r"\*\*[^\n\*]*\*\*", response)]
    return sum(bool(piece.strip()) for piece in [*single, *double]) >= num_highlights


def multiple_sections(response: str, *, section_spliter: Text, num_sections: Count) -> bool:
    """At least so many sections, each opened by the word and a number; the key is IFEval's."""
    opening = rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?"
    return len(re.findall(opening, response)) >= num_sections


def json_format(response: str) -> bool:
    """The whole response is JSON, in a code fence or not."""
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(response: str) -> bool:
    """A <<title>> that is not empty."""
    titles = re.findall(r"<<[^\n]+>>", response)
    return any(found.lstrip("<").rstrip(">").strip() for found in titles)


def two_responses(response: str) -> bool:
    """Two different answers divided by ******."""
    first, *inner = response.split("******")
    last = [inner.pop()] if inner else []
    if not all(answer.strip() for answer in inner):
        return False
    answers = [answer.strip() for answer in [first, *inner, *last] if answer.strip()]
    return len(answers) == 2 and answers[0] != answers[1]


def repeat_prompt(response: str, *, prompt_to_repeat: Text) -> bool:
    """The response begins with the request, word for word, whatever its case."""
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(response: str, *, end_phrase: Text) -> bool:
    """The response ends with the phrase, whatever its case; a closing quote may follow."""
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(response: str) -> bool:
    """The whole response stands in double quotes."""
    text = response.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def no_comma(response: str) -> bool:
    """No comma."""
    return "," not in response
