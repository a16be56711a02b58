"""Questions about parts of long documents, for the long-context phase.

Source: the report (section 2.6): academic documents of more than 32k tokens are cut into chunks of
1,024 tokens, a model writes questions and answers about a tenth of them, and all of these go to the
end of the document, so that answering means looking far back.
"""

import random

from plait.core.seed import mix_seed
from plait.synth.chunks import chunks
from plait.synth.client import Unusable
from plait.synth.pairs import Pair, Pairs, as_text, usable_pairs
from plait.synth.pieces import Pieces
from plait.synth.pipeline import Pipeline, together
from plait.synth.prompts import render
from plait.synth.rows import read_pages
from plait.synth.sample import Sample
from plait.synth.settings import Page, PositiveInt, Share, Sources, SynthSettings


class LongDocumentQaSettings(SynthSettings):
    """Settings of the generator `long_document_qa`."""

    min_document_tokens: PositiveInt = 32_768
    chunk_tokens: PositiveInt = 1024
    chunk_share: Share = 0.1
    """Share of a document's chunks that are asked about, at least one."""
    pairs_per_chunk: PositiveInt = 3
    """Most pairs about one chunk. Our choice."""
    max_answer_tokens: PositiveInt = 1024


async def generate(settings: LongDocumentQaSettings, sources: Sources, pipeline: Pipeline) -> None:
    """Put questions and answers behind every long document."""
    writer = pipeline.roles["writer"]

    async def ask(chunk: str) -> list[Pair]:
        prompt = render("long_document_qa", text=chunk, most=settings.pairs_per_chunk)
        try:
            filled = await writer.fill(prompt, Pairs, max_tokens=settings.max_answer_tokens)
            return usable_pairs(filled, pipeline.parts)[: settings.pairs_per_chunk]
        except Unusable as failure:
            if failure.reason == "over_budget":
                raise
            pipeline.parts[f"chunk_{failure.reason}"] += 1
            return []

    def long(page: Page) -> list[Page | str]:
        is_long = sources.num_tokens(page.text) >= settings.min_document_tokens
        return [page if is_long else "short_document"]

    async def extend(page: Page) -> list[Sample]:
        pieces = list(chunks(page.text, settings.chunk_tokens, sources.num_tokens))
        dice = random.Random(mix_seed(settings.seed, page.id))
        chosen = dice.sample(range(len(pieces)), max(1, round(len(pieces) * settings.chunk_share)))
        answered = await together(ask(pieces[number]) for number in sorted(chosen))
        pairs = [pair for found in answered for pair in found]
        if not pairs:
            raise Unusable("no_usable_chunk", f"{len(chosen)} chunks were asked about")
        metadata = page.metadata | {"pairs": len(pairs)}
        return [Sample(page.id, f"{page.text.rstrip()}\n\n{as_text(pairs)}", metadata=metadata)]

    pages = read_pages(sources, settings.files_read())
    await pipeline.run("long documents", Pieces(settings, sources, pipeline, pages, long), extend)
