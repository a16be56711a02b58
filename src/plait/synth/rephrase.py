"""Pages told again: low quality as an encyclopedia would, high quality distilled into knowledge.

Source: Nemotron-CC (arXiv 2412.02595) and NVIDIA's open re-statement of it, whose lengths are the
defaults here: passages and answers in tokens, results under 50 tokens dropped, markdown and
prefixes stripped. Question pairs, its fifth style, are the generator `diverse_qa`.
"""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from plait.synth.client import Unusable
from plait.synth.pieces import Pieces, passages
from plait.synth.pipeline import Pipeline
from plait.synth.prompts import render
from plait.synth.rows import read_pages
from plait.synth.sample import Sample
from plait.synth.settings import Page, PositiveInt, Sources, SynthSettings

Style = Literal["wikipedia", "distil", "extract", "list"]


class Lengths(NamedTuple):
    """How much is read and written at most, in tokens."""

    passage: int
    answer: int


LENGTHS: dict[Style, Lengths] = {
    "wikipedia": Lengths(512, 510),
    "distil": Lengths(2000, 1600),
    "extract": Lengths(1400, 1400),
    "list": Lengths(1000, 600),
}

_PREFIX = re.compile(
    r"^\W*(sure|certainly|of course|okay|here (is|are)|below (is|are)|"
    r"(paraphrased|rewritten|rephrased|condensed|distilled) (text|version|passage))\b"
    r"[^\n]{0,120}:\s*",
    re.IGNORECASE,
)
_MARKS = re.compile(r"^#{1,6}\s+|\*\*|__(?=\S)|(?<=\S)__", re.MULTILINE)


class RephraseSettings(SynthSettings):
    """Settings of the generator `rephrase`."""

    style: Style
    """`wikipedia` for pages of low quality; `distil`, `extract` and `list` for those of high."""
    min_tokens: PositiveInt = 50
    """Passages and results under this are left out."""


async def generate(settings: RephraseSettings, sources: Sources, pipeline: Pipeline) -> None:
    """Tell every passage again in the style of the settings."""
    writer = pipeline.roles["writer"]
    lengths = LENGTHS[settings.style]

    def check(text: str) -> str:
        text = stripped(text)
        if sources.num_tokens(text) < settings.min_tokens:
            raise Unusable("too_short")
        return text

    async def tell(page: Page) -> list[Sample]:
        prompt = render(f"rephrase_{settings.style}", text=page.text)
        text = await writer.write(prompt, max_tokens=lengths.answer, check=check)
        id, metadata = f"{page.id}/{settings.style}", page.metadata | {"style": settings.style}
        return [Sample(id, text, metadata=metadata)]

    def cut(page: Page) -> Iterator[Page | str]:
        return passages(page, lengths.passage, settings.min_tokens, sources)

    pages = read_pages(sources, settings.files_read())
    await pipeline.run("rephrased", Pieces(settings, sources, pipeline, pages, cut), tell)


def stripped(text: str) -> str:
    """Return a text without markdown emphasis, headings and a sentence that announces it."""
    return _MARKS.sub("", _PREFIX.sub("", text)).strip()
