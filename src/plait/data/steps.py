"""What a step of curation is, and how a category names the steps that its documents go through.

A category says `content = "web" | "maths" | "code" | "text"`. Each is a module of this room with
two functions, which `PATHS` names:

    steps(category: CategorySettings) -> Sequence[Step]         from raw page to text
    late_steps(category: CategorySettings) -> Sequence[Step]    after deduplication; often none

What all contents are asked after deduplication, benchmarks and scores, follows in `late`.

A `Step` is a name and a function from documents to documents. It gets the documents of one shard
(one category, a few hundred pages) as an iterator, changes them in place, and does exactly one of
two things with each: yields it, or hands it to `task.drop(document, reason)`. Nothing else
happens to a document: none is split, joined or made, so documents in = documents kept + documents
dropped, and curation asserts it. Most steps judge one document at a time; `per_document` makes a
step of a function that returns the reason to drop, or None:

    def judge(document: Document, task: Task) -> str | None

Documents are datatrove's: `text`, `id`, `metadata`. The reader gives decoded text (HTML as it
stands) and the metadata `category`, `url`, `source`, `licence` and `media_type`; a step that
finds the language sets `language` (programming language for code), scores are floats under their
own names. A reason is a lower-case word with underscores, says what is wrong with the document
(`no_text`), and is its name for ever in funnels. A step that needs many documents at once
(batches for an endpoint or an embedding model) takes them from the iterator as it likes, in
order.

Steps run in worker processes: `steps` is called there, so it may hold what cannot be pickled.
What is slow to load is loaded on first use and kept (`functools.cache`). A task that is killed is
run anew from its first document; a step with costly results keeps them under `task.cache`, which
survives.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datatrove.data import Document

    from plait.data.curate_settings import CategorySettings

PATHS = {
    "web": "plait.data.web",
    "text": "plait.data.text",
    "maths": "plait.data.maths",
    "code": "plait.data.code",
}

Ask = Callable[[Sequence[str]], Sequence[str | None]]
"""Puts prompts to a language model and returns an answer each, in order; None for one that gave up.

It can be pickled, bounds its own concurrency and keeps answers, so asking again costs nothing."""


class Task(NamedTuple):
    """What a step may know and use besides its documents."""

    category: str
    drop: "Callable[[Document, str], None]"
    """Records a document's end and the reason."""
    cache: Path
    """A folder for what is costly to make again; shared by all tasks and categories."""
    ask: Mapping[str, Ask]
    """Language models by role (`clean`, `label`, `judge`); only the roles that the recipe gives."""


class Step(NamedTuple):
    """A named function over the documents of a task."""

    name: str
    run: "Callable[[Iterator[Document], Task], Iterator[Document]]"


def per_document(name: str, judge: "Callable[[Document, Task], str | None]") -> Step:
    """Make a step of a function that changes one document and returns the reason to drop it."""

    def run(documents: "Iterator[Document]", task: Task) -> "Iterator[Document]":
        for document in documents:
            reason = judge(document, task)
            if reason is None:
                yield document
            else:
                task.drop(document, reason)

    return Step(name, run)


def path_module(category: "CategorySettings") -> Any:
    """Return the module that holds the steps of a category's content."""
    return importlib.import_module(PATHS[category.content])
