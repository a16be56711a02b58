"""Pages of mathematics: rendered by lynx so that formulas survive, cleaned by a language model.

    render     HTML -> formulas as LaTeX (`maths_html`) -> text by lynx; other text is tidied
    clean      chunks of 5,000 tokens to the model of the role `clean`, merged back; without the
               role nothing is cleaned
    language, heuristics as for other prose

Nemotron-CC-Math's way (arXiv 2508.15096); its sizes are those of NVIDIA's published pipeline.
"""

import importlib.resources
import itertools
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from datatrove.data import Document

from plait.data.chunks import chunks
from plait.data.curate_settings import CategorySettings
from plait.data.extract import NAVIGATION, tidy
from plait.data.heuristics import heuristics_step
from plait.data.language import language_step
from plait.data.lynx import Rendered, find_lynx, render
from plait.data.maths_html import with_latex
from plait.data.steps import Ask, Step, Task

CHUNK_TOKENS = 5_000
_BROWSERS = 2
_PAGES_CLEANED_AT_ONCE = 64
_EMPTY = "EMPTY"
_FENCE = re.compile(r"```(?:latex|markdown|text)?\n(.*)\n```", re.DOTALL)


def steps(category: CategorySettings) -> Sequence[Step]:
    """Return the steps from raw page to judged text.

    Raises: ConfigError if lynx is not installed.
    """
    find_lynx()

    def render_all(documents: Iterator[Document], task: Task) -> Iterator[Document]:
        return rendered(documents, task, (*NAVIGATION, *category.skip))

    return [
        Step("render", render_all),
        Step("clean", cleaned),
        language_step(category),
        heuristics_step(category),
    ]


def late_steps(category: CategorySettings) -> Sequence[Step]:
    """Return nothing: all is judged before deduplication."""
    return []


def rendered(
    documents: Iterator[Document], task: Task, skip: Sequence[str] = ()
) -> Iterator[Document]:
    """Turn pages into text in place, in order, a few browsers at a time.

    Drops: `page_too_large`, `render_timeout`, `render_too_long`, `render_failed`, `no_text`.
    """
    waiting: deque[tuple[Document, Future[Rendered]]] = deque()
    with ThreadPoolExecutor(_BROWSERS) as browsers:
        for document in documents:
            media_type = document.metadata.pop("media_type", "")
            waiting.append((document, browsers.submit(_text_of, document.text, media_type, skip)))
            if len(waiting) > 2 * _BROWSERS:
                yield from _settled(*waiting.popleft(), task)
        while waiting:
            yield from _settled(*waiting.popleft(), task)


def cleaned(documents: Iterator[Document], task: Task) -> Iterator[Document]:
    """Have the texts cleaned by the model of the role `clean`, if there is one.

    Drops: `clean_failed` if a chunk got no answer, `clean_empty` if nothing was left.
    """
    if "clean" not in task.ask:
        yield from documents
        return
    while batch := list(itertools.islice(documents, _PAGES_CLEANED_AT_ONCE)):
        answers = clean_texts([document.text for document in batch], task.ask["clean"])
        for document, text in zip(batch, answers, strict=True):
            if text:
                document.text = text
                yield document
            else:
                task.drop(document, "clean_failed" if text is None else "clean_empty")


def clean_texts(texts: Sequence[str], ask: Ask, max_tokens: int = CHUNK_TOKENS) -> list[str | None]:
    """Clean each text chunk by chunk and merge it again; None where a chunk got no answer."""
    parts = [chunks(text, max_tokens) for text in texts]
    template = importlib.resources.files("plait.data").joinpath("prompts/clean_maths.txt")
    frame = template.read_text(encoding="utf-8")
    prompts = [frame.replace("{text}", part) for text in parts for part in text]
    answers = iter(ask(prompts))
    return [_merged([next(answers) for _ in text]) for text in parts]


def _merged(answers: Sequence[str | None]) -> str | None:
    texts = []
    for answer in answers:
        if answer is None:
            return None
        answer = answer.strip()
        fenced = _FENCE.fullmatch(answer)
        texts.append(fenced[1].strip() if fenced else answer)
    return "\n\n".join(text for text in texts if text and text != _EMPTY)


def _text_of(page: str, media_type: str, skip: Sequence[str]) -> Rendered:
    if media_type and "html" not in media_type:
        text = tidy(page)
    else:
        made = render(with_latex(page, skip))
        if made.fault:
            return made
        text = tidy(made.text)
    return Rendered(text) if text else Rendered("", "no_text")


def _settled(document: Document, page: Future[Rendered], task: Task) -> Iterator[Document]:
    document.text, fault = page.result()
    if fault is None:
        yield document
    else:
        task.drop(document, fault)
