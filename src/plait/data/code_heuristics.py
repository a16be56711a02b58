"""Heuristic rules for source code, in OpenCoder's three families (arXiv 2411.04905, appendix A).

    as text                 length, lines, letters, words, filler text
    as code of any kind     generated, encoded data, repeated lines, strings, comments, notes to do
    by language             what its lines do (`code_languages.toml`)

Limits of the first two are `CodeRules`; every rule has a reason of its own.
"""

import functools
import importlib.resources
import re
import tomllib
from collections import Counter
from typing import Any, NamedTuple

from plait.data.curate_settings import CodeRules

_GENERATED = re.compile(
    r"auto-?generated|automatically generated|generated (automatically|by|from)|"
    r"is generated|do not (edit|modify)",
    re.IGNORECASE,
)
_GENERATED_CHARACTERS = 400
_ENCODED = re.compile(
    r"[A-Za-z0-9+/]{64,}={0,2}|(?:(?:0x|\\x)?[0-9a-fA-F]{2}(?:,\s*|\s+|(?=\\x))){16,}|"
    r"(?:\\u[0-9a-fA-F]{4}){8,}"
)
_LONGEST_ENCODED = 1_024
_HEX_WORD = re.compile(r"\b0[xX][0-9a-fA-F]+\b")
_STRING = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'")
_TO_DO = re.compile(r"\b(todo|fixme|xxx|your code here)\b", re.IGNORECASE)
_FILLER = re.compile(r"lorem ipsum", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]{2,}")


class Language(NamedTuple):
    """How lines of a language are told apart."""

    comment: str
    block: tuple[str, str]
    needs: re.Pattern[str]
    lines: tuple[tuple[str, re.Pattern[str], float], ...]
    """Kind, pattern, largest share."""


def code_fault(text: str, rules: CodeRules, language: str = "") -> str | None:
    """Return why source code is not kept, or None. `language` as in `code_languages.toml`."""
    return (
        text_fault(text, rules)
        or general_fault(text, rules, language)
        or line_fault(text, language)
    )


def text_fault(text: str, rules: CodeRules) -> str | None:
    """Judge a file as any text."""
    lines = text.split("\n")
    if len(text) < rules.min_characters:
        return "code_too_short"
    if len(text) > rules.max_characters:
        return "code_too_long"
    if len(lines) > rules.max_lines:
        return "code_many_lines"
    if max(map(len, lines)) > rules.max_line_characters:
        return "code_long_line"
    if len(text) / len(lines) > rules.max_mean_line_characters:
        return "code_long_lines"
    few = sum(map(str.isalpha, text)) < rules.min_alphabetic * len("".join(text.split()))
    if few or sum(map(str.isalnum, text)) < rules.min_alphanumeric * len(text):
        return "code_few_letters"
    if len(set(_WORD.findall(text.lower()))) < rules.min_distinct_words:
        return "code_few_words"
    if _FILLER.search(text):
        return "code_filler"
    return None


def general_fault(text: str, rules: CodeRules, language: str = "") -> str | None:
    """Judge a file as code of any language."""
    if _GENERATED.search(text[:_GENERATED_CHARACTERS]):
        return "code_generated"
    encoded = [len(match[0]) for match in _ENCODED.finditer(text)]
    if sum(encoded) > rules.max_encoded * len(text) or max(encoded, default=0) > _LONGEST_ENCODED:
        return "code_encoded_data"
    code = code_lines(text, language)
    joined = "\n".join(code)
    if len(joined) < rules.min_code * len(text):
        return "code_mostly_comments"
    if sum(len(word[0]) for word in _HEX_WORD.finditer(joined)) > rules.max_hex * len(joined):
        return "code_hex_words"
    if sum(len(s[0]) for s in _STRING.finditer(joined)) > rules.max_strings * len(joined):
        return "code_mostly_strings"
    counts = Counter(line for line in code if len(line) > 2)
    repeated = sum(count for count in counts.values() if count > 1)
    if repeated > rules.max_repeated_lines * max(len(code), rules.min_lines_judged):
        return "code_repeated_lines"
    if len(_TO_DO.findall(text)) > rules.max_to_do * (text.count("\n") + 1):
        return "code_to_do"
    return None


def line_fault(text: str, language: str) -> str | None:
    """Judge what the lines of a file do, by its language; other languages pass."""
    known = languages().get(language)
    if known is None:
        return None
    code = code_lines(text, language)
    if not any(known.needs.match(line) for line in code):
        return "code_no_logic"
    for kind, pattern, share in known.lines:
        if sum(1 for line in code if pattern.match(line)) > share * len(code):
            return f"code_mostly_{kind}"
    return None


def code_lines(text: str, language: str) -> list[str]:
    """Return the lines that hold code, without indentation; all that are not blank if unknown."""
    lines = [line for raw in text.split("\n") if (line := raw.strip())]
    known = languages().get(language)
    if known is None:
        return lines
    start, end = known.block
    kept, inside = [], False
    for line in lines:
        if inside:
            inside = end not in line
        elif line.startswith(start):
            inside = end not in line[len(start) :]
        elif not line.startswith(known.comment):
            kept.append(line)
    return kept


@functools.cache
def languages() -> dict[str, Language]:
    """Return the languages of `code_languages.toml` by name."""
    data = importlib.resources.files("plait.data").joinpath("code_languages.toml")
    return {name: _language(row) for name, row in tomllib.loads(data.read_text("utf-8")).items()}


def _language(row: dict[str, Any]) -> Language:
    lines = tuple((kind, re.compile(p), share) for kind, (p, share) in row["lines"].items())
    start, end = row["block"]
    return Language(row["comment"], (start, end), re.compile(row["needs"]), lines)
