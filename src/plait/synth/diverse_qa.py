"""Diverse question answering: up to eight pairs of six kinds, put behind the page they ask about.

Source: Nemotron-CC (arXiv 2412.02595) and NVIDIA's open re-statement of it: passages of at most
1,000 tokens, answers of at most 600; of n tokens' pairs a random 1 to max(1, 10 n / 150) stay, in
random order, after the passage.
"""

import random
from collections.abc import Iterator

from plait.core.seed import mix_seed
from plait.synth.pairs import Pairs, as_text, usable_pairs
from plait.synth.pieces import Pieces, passages
from plait.synth.pipeline import Pipeline
from plait.synth.prompts import render
from plait.synth.rows import read_pages
from plait.synth.sample import Sample
from plait.synth.settings import Page, PositiveInt, Sources, SynthSettings

TOKENS_FOR_TEN_PAIRS = 150


class DiverseQaSettings(SynthSettings):
    """Settings of the generator `diverse_qa`."""

    passage_tokens: PositiveInt = 1000
    """Longest passage; longer pages are cut into several."""
    min_passage_tokens: int = 50
    """A shorter rest of a page is left out. Our choice."""
    max_answer_tokens: PositiveInt = 600


async def generate(settings: DiverseQaSettings, sources: Sources, pipeline: Pipeline) -> None:
    """Ask about every passage."""
    writer = pipeline.roles["writer"]

    async def ask(page: Page) -> list[Sample]:
        prompt = render("diverse_qa", text=page.text)
        filled = await writer.fill(prompt, Pairs, max_tokens=settings.max_answer_tokens)
        pairs = usable_pairs(filled, pipeline.parts)
        dice = random.Random(mix_seed(settings.seed, page.id))
        most = max(1, 10 * sources.num_tokens(page.text) // TOKENS_FOR_TEN_PAIRS)
        dice.shuffle(pairs)
        pairs = pairs[: dice.randint(1, most)]
        metadata = page.metadata | {"kinds": [pair.kind for pair in pairs]}
        return [Sample(page.id, f"{page.text}\n\n{as_text(pairs)}", metadata=metadata)]

    def cut(page: Page) -> Iterator[Page | str]:
        return passages(page, settings.passage_tokens, settings.min_passage_tokens, sources)

    pages = read_pages(sources, settings.files_read())
    await pipeline.run("questions", Pieces(settings, sources, pipeline, pages, cut), ask)
