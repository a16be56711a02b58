"""Maths dialogues: a page of mathematics told again as a conversation, in one of seven styles.

Source: the report (section 2.2.2) regenerates MIND (arXiv 2410.12881): chunks of 5,000 tokens of
maths pages, seven kinds of conversation between speakers who know different amounts. MIND drops
what is shorter than 50 tokens; that a conversation has several turns of at least two speakers is
our test.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from pydantic import field_validator

from plait.core.config import nearest
from plait.core.seed import mix_seed
from plait.synth.chunks import chunks
from plait.synth.client import Unusable
from plait.synth.pieces import Pieces
from plait.synth.pipeline import Pipeline
from plait.synth.prompts import render, table
from plait.synth.rows import read_pages
from plait.synth.sample import Sample
from plait.synth.settings import Page, PositiveInt, Sources, SynthSettings

_TURN = re.compile(r"^\W{0,4}([^\W\d_][\w .'’-]{0,40}?)\W{0,3}:\s*\S", re.MULTILINE)


class DialogueSettings(SynthSettings):
    """Settings of the generator `dialogue`."""

    styles: tuple[str, ...] = tuple(table("dialogue_styles"))
    """Kinds of conversation; each chunk gets one by its hash."""
    all_styles: bool = False
    """Whether each chunk is told in every style."""
    chunk_tokens: PositiveInt = 5000
    max_answer_tokens: PositiveInt = 4096
    min_answer_tokens: int = 50
    min_turns: PositiveInt = 4
    """Our choice."""

    @field_validator("styles")
    @classmethod
    def _are_known(cls, styles: tuple[str, ...]) -> tuple[str, ...]:
        for style in styles:
            if style not in table("dialogue_styles"):
                raise ValueError(f"no {style!r}; {nearest(style, list(table('dialogue_styles')))}")
        return styles


class Chunk(NamedTuple):
    """A piece of a page and the style it is told in."""

    id: str
    text: str
    style: str


async def generate(settings: DialogueSettings, sources: Sources, pipeline: Pipeline) -> None:
    """Tell every chunk as a dialogue."""
    writer = pipeline.roles["writer"]

    def check(text: str) -> str:
        speakers = _TURN.findall(text)
        if sources.num_tokens(text) < settings.min_answer_tokens:
            raise Unusable("too_short")
        if len(speakers) < settings.min_turns or len(set(speakers)) < 2:
            raise Unusable("no_dialogue", f"{len(speakers)} turns, {len(set(speakers))} speakers")
        return text

    async def tell(chunk: Chunk) -> list[Sample]:
        style = table("dialogue_styles")[chunk.style]
        prompt = render("dialogue", style=style, text=chunk.text)
        text = await writer.write(prompt, max_tokens=settings.max_answer_tokens, check=check)
        return [Sample(chunk.id, text, metadata={"style": chunk.style, "source": chunk.id})]

    def cut(page: Page) -> Iterator[Chunk | str]:
        pieces = chunks(page.text, settings.chunk_tokens, sources.num_tokens)
        for number, piece in enumerate(pieces):
            name = f"{page.id}#{number}"
            chosen = settings.styles[mix_seed(settings.seed, name) % len(settings.styles)]
            for style in settings.styles if settings.all_styles else (chosen,):
                yield Chunk(f"{name}/{style}", piece, style) if piece.strip() else "no_text"

    pages = read_pages(sources, settings.files_read())
    await pipeline.run("dialogues", Pieces(settings, sources, pipeline, pages, cut), tell)
