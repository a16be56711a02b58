"""Academic questions and answers, written from snippets that a search found.

Source: the report (section 2.2.2): academic text is cut into snippets of 512 tokens and embedded
into Milvus; for each query document the 250 nearest are taken; from each snippet a model writes a
multiple-choice or a free-response item with its justification. The report embeds with e5-large;
its path goes under `embedding_model`. Query documents are the user's files, or else a sample of
the documents themselves (our choice).
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from plait.core.errors import DataError
from plait.core.seed import mix_seed
from plait.synth.choice import LETTERS, Choice, as_question, check_choice, right_option
from plait.synth.client import Unusable
from plait.synth.pieces import Pieces, passages
from plait.synth.pipeline import Pipeline
from plait.synth.prompts import render
from plait.synth.rows import read_pages
from plait.synth.sample import Sample, question_and_answer
from plait.synth.settings import Page, PositiveInt, Share, Sources, SynthSettings
from plait.synth.vectors import open_snippets


class AcademicQaSettings(SynthSettings):
    """Settings of the generator `academic_qa`; files hold query documents."""

    snippet_tokens: PositiveInt = 512
    min_snippet_tokens: int = 64
    """A shorter rest of a document is left out. Our choice."""
    neighbours: PositiveInt = 250
    """Snippets taken for each query document."""
    num_queries: PositiveInt = 100
    """Documents that serve as queries where no files do. Our choice."""
    embedding_model: str | None = None
    """Path of a sentence-embedding model; None takes all-MiniLM-L6-v2 from its package."""
    query_prefix: str = ""
    """Put before a query when it is embedded; e5 was trained on `query: `."""
    snippet_prefix: str = ""
    """Put before a snippet when it is embedded; e5 was trained on `passage: `."""
    milvus: str | None = None
    """Path of a milvus-lite file, or a server's address; None keeps a file in the run folder."""
    choice_share: Share = 0.5
    """Share of snippets that become multiple choice instead of free response. Our choice."""
    subjects: tuple[str, ...] = ()
    """Only documents with one of these in their metadata `subject`; none takes all."""
    max_answer_tokens: PositiveInt = 1024


class Free(BaseModel):
    """A free-response item."""

    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    justification: str = Field(min_length=1)


class JustifiedChoice(Choice):
    """A multiple-choice item and why its answer is right."""

    justification: str = Field(min_length=1)


async def generate(settings: AcademicQaSettings, sources: Sources, pipeline: Pipeline) -> None:
    """Write an item from every snippet that is near a query."""
    pages: list[Page] = []

    def cut(page: Page) -> Iterator[Page | str]:
        if settings.subjects and page.metadata.get("subject") not in settings.subjects:
            yield "other_subject"
            return
        pages.append(page)
        yield from passages(page, settings.snippet_tokens, settings.min_snippet_tokens, sources)

    all_of_them = settings.model_copy(update={"max_items": None, "files": ()})
    snippets = list(Pieces(all_of_them, sources, pipeline, read_pages(sources, ()), cut))
    if not snippets:
        raise DataError("academic_qa: no document to cut into snippets; check categories, subjects")
    found = _near_queries(settings, sources, pages, snippets)
    pipeline.parts["not_near_a_query"] += len(snippets) - len(found)
    await pipeline.run("items", found[: settings.max_items], partial(_write, settings, pipeline))


def _near_queries(
    settings: AcademicQaSettings, sources: Sources, pages: Sequence[Page], snippets: Sequence[Page]
) -> list[Page]:
    """Return the snippets near any query, in the order of the documents."""
    if settings.files:
        nothing = sources._replace(documents=lambda: iter(()))
        texts = [page.text for page in read_pages(nothing, settings.files_read())]
    else:
        dice = random.Random(mix_seed(settings.seed, "queries"))
        texts = [p.text for p in dice.sample(pages, min(settings.num_queries, len(pages)))]
    queries = [settings.query_prefix + text for text in texts]
    texts = [settings.snippet_prefix + snippet.text for snippet in snippets]
    address = settings.milvus or str(sources.cache / "snippets.db")
    if not address.startswith("http"):
        Path(address).parent.mkdir(parents=True, exist_ok=True)

    def embed(batch: Sequence[str]) -> Any:
        return sources.embed(batch, settings.embedding_model)

    with open_snippets(address, _collection(settings, texts), embed) as collection:
        collection.fill(texts)
        near = collection.nearest(queries, min(settings.neighbours, len(texts)))
        chosen = sorted({number for numbers in near for number in numbers})
    return [snippets[number] for number in chosen]


def _collection(settings: AcademicQaSettings, texts: Sequence[str]) -> str:
    """Name a collection by all that is in it."""
    digest = hashlib.sha256(str(settings.embedding_model).encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return f"snippets_{digest.hexdigest()[:16]}"


async def _write(settings: AcademicQaSettings, pipeline: Pipeline, page: Page) -> list[Sample]:
    writer, most = pipeline.roles["writer"], settings.max_answer_tokens
    form: Literal["choice", "free"] = "free"
    if mix_seed(settings.seed, "form", page.id) < settings.choice_share * 2**63:
        form = "choice"
    prompt = render(f"academic_{form}", text=page.text)
    if form == "choice":
        item = await writer.fill(prompt, JustifiedChoice, max_tokens=most, check=check_choice)
        question = as_question(item.question, item.options)
        place = right_option(item)
        right = f"({LETTERS[place]}) {item.options[place]}"
        answer = f"{item.justification.strip()}\n\nThe answer is {right}"
    else:
        item = await writer.fill(prompt, Free, max_tokens=most)
        if " ".join(item.question.split()) == " ".join(item.answer.split()):
            raise Unusable("answer_is_question")
        question = item.question.strip()
        answer = f"{item.answer.strip()}\n\n{item.justification.strip()}"
    metadata = page.metadata | {"form": form}
    return [question_and_answer(f"{page.id}/{form}", question, answer, None, metadata)]
