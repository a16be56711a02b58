"""Documents and conversations translated line by line.

Source: the report (sections 2.2.2 and 3.1): lines that must not be translated, such as code, are
passed through; the model puts each translation in brackets, so that what it says around them does
not get in; what does not turn out in the right language is dropped. The reasoning of an answer
stays in English, as in NVIDIA's account of its translated data.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, field_validator

from plait.synth.client import Unusable
from plait.synth.pieces import Pieces
from plait.synth.pipeline import Pipeline, together
from plait.synth.prompts import render, table
from plait.synth.rows import read_pages, read_rows
from plait.synth.sample import Sample
from plait.synth.settings import Page, PositiveInt, Sources, SynthSettings

OPENING, CLOSING = "〘", "〙"

_FENCE = re.compile(r"^\s*(```|~~~)")
_LETTER = re.compile(r"[^\W\d_]")
_CODE = re.compile(
    r"^( {4}|\t)\S|^\s*(\$ |>>> |\.\.\. |#include\b|import \w|from [\w.]+ import|def \w+\(|"
    r"class \w+[:(]|return\b.*;|\\begin\{|\\end\{)|^\s*[\w.\[\]]+ ?=[^=].*[;)\d]\s*$|[;{}]\s*$"
)
_ADDRESS = re.compile(r"^\s*(https?://|www\.)\S+\s*$")
_MATHS = re.compile(r"^\s*(\$\$?.+\$\$?|\\[\[(].+\\[\])])\s*$")
_BULLET = re.compile(r"^(\s*(?:[-*+]|\d+[.)])?\s*)(.*?)(\s*)$", re.DOTALL)


class TranslateSettings(SynthSettings):
    """Settings of the generator `translate`; files hold conversations (`messages`)."""

    languages: tuple[str, ...] = tuple(table("languages"))
    """Codes of the languages that everything is translated into."""
    max_line_tokens: PositiveInt = 2048
    """Longest translation of one line."""
    max_growth: PositiveInt = 6
    """A line that comes back more than so many times as long, or shorter by as much, is no
    translation. Our choice."""

    @field_validator("languages")
    @classmethod
    def _are_known(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        for code in languages:
            if code not in table("languages"):
                raise ValueError(f"no {code!r}; allowed: {', '.join(table('languages'))}")
        return languages


class Conversation(BaseModel):
    """A row of a file of conversations."""

    id: str = ""
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []


class Job(NamedTuple):
    """One thing to be translated into one language."""

    id: str
    language: str
    text: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    metadata: Mapping[str, Any]


async def generate(settings: TranslateSettings, sources: Sources, pipeline: Pipeline) -> None:
    """Translate everything into every language."""
    writer = pipeline.roles["writer"]

    async def line(text: str, language: str) -> str:
        prompt = render("translate", text=text, language=table("languages")[language])

        def check(answer: str) -> str:
            return bracketed(answer, text, settings.max_growth)

        return await writer.write(prompt, max_tokens=settings.max_line_tokens, check=check)

    async def whole(text: str, language: str) -> str:
        lines = text.split("\n")
        translated = await together(
            _one_line(line, text, language) if translatable else _as_it_is(text)
            for text, translatable in zip(lines, translatable_lines(lines), strict=True)
        )
        spoken = [new for new, old in zip(translated, lines, strict=True) if new != old]
        if not spoken:
            raise Unusable("nothing_to_translate")
        found = sources.language_of("\n".join(spoken))
        if found != language:
            raise Unusable("other_language", f"{found}, not {language}")
        return "\n".join(translated)

    async def turn(message: Mapping[str, Any], language: str) -> dict[str, Any]:
        content = message.get("content")
        if message.get("role") == "tool" or not isinstance(content, str) or not content.strip():
            return dict(message)
        return {**message, "content": await whole(content, language)}

    async def translate(job: Job) -> list[Sample]:
        metadata = {**job.metadata, "language": job.language}
        if job.messages:
            turns = await together(turn(message, job.language) for message in job.messages)
            return [Sample(job.id, messages=turns, tools=job.tools, metadata=metadata)]
        return [Sample(job.id, await whole(job.text, job.language), metadata=metadata)]

    def jobs(source: Conversation | Page) -> Iterator[Job | str]:
        for code in settings.languages:
            name = f"{source.id}/{code}"
            if isinstance(source, Conversation):
                yield Job(name, code, "", source.messages, source.tools, {})
            else:
                yield Job(name, code, source.text, [], [], source.metadata)

    originals = itertools.chain(
        read_rows(settings.files_read(), Conversation), read_pages(sources, ())
    )
    pieces = Pieces(settings, sources, pipeline, originals, jobs)
    await pipeline.run("translations", pieces, translate)


def translatable_lines(lines: list[str]) -> Iterator[bool]:
    """Say of each line whether it is language: not code, formula, address or without letters."""
    fenced = False
    for line in lines:
        if _FENCE.match(line):
            fenced = not fenced
            yield False
        else:
            other = any(p.search(line) for p in (_CODE, _ADDRESS, _MATHS))
            yield not fenced and not other and bool(_LETTER.search(line))


def bracketed(answer: str, line: str, max_growth: int) -> str:
    """Return what an answer has between brackets, one pair of them, one line.

    Raises: Unusable if it has not, or the length cannot be that of a translation.
    """
    if answer.count(OPENING) != 1 or answer.count(CLOSING) != 1:
        raise Unusable("no_brackets", answer[:60])
    text = " ".join(answer.partition(OPENING)[2].partition(CLOSING)[0].split())
    if not text:
        raise Unusable("empty_translation")
    spare = 20  # a short line may well become longer by its factor
    if not (len(line) / max_growth - spare <= len(text) <= len(line) * max_growth + spare):
        raise Unusable("length_of_translation", f"{len(line)} -> {len(text)} characters")
    return text


async def _one_line(line: Any, text: str, language: str) -> str:
    """Translate a line and leave its bullet, number and blanks as they are."""
    match = _BULLET.match(text)
    assert match is not None
    head, body, tail = match.groups()
    return head + await line(body, language) + tail


async def _as_it_is(text: str) -> str:
    return text
