"""What generators work on, cut from documents as it is needed, each document accounted for."""

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from plait.synth.chunks import chunks
from plait.synth.pipeline import Identified, Pipeline
from plait.synth.rows import count_lines
from plait.synth.settings import Page, Sources, SynthSettings

Source = TypeVar("Source", bound=Identified)
Item = TypeVar("Item", bound=Identified)

DOCUMENTS = "documents"
"""The step that says what became of the documents that were read."""


class Pieces(Generic[Source, Item]):
    """Items of documents, at most `max_items` of them.

    `cut` returns the items of a document, and in the place of a piece that is left out the reason:
    a string. A document of which nothing is left counts as dropped for the last of its reasons.
    """

    def __init__(
        self,
        settings: SynthSettings,
        sources: Sources,
        pipeline: Pipeline,
        documents: Iterable[Source],
        cut: Callable[[Source], Iterable[Item | str]],
    ) -> None:
        self._documents, self._cut, self._pipeline = documents, cut, pipeline
        self._max_items = settings.max_items
        self._num_documents = sources.num_documents() + count_lines(settings.files_read())
        self._num_read = self._num_made = 0
        pipeline.open(DOCUMENTS)

    def __iter__(self) -> Iterator[Item]:
        num_given = 0
        for document in self._documents:
            items = self._items_of(document)
            self._num_read += 1
            self._num_made += len(items)
            for item in items:
                yield item
                num_given += 1
                if num_given == self._max_items:
                    return

    def expected(self) -> float | None:
        """Guess how many items there will be: of each document as many as of those so far."""
        if not self._num_read or self._num_documents < self._num_read:
            return self._max_items
        guess = self._num_made * self._num_documents / self._num_read
        return guess if self._max_items is None else min(guess, self._max_items)

    def _items_of(self, document: Source) -> list[Item]:
        items, reason = [], "no_piece"
        for piece in self._cut(document):
            if isinstance(piece, str):
                reason = piece
                self._pipeline.parts[piece] += 1
            else:
                items.append(piece)
        self._pipeline.account(DOCUMENTS, document, None if items else reason)
        return items


def passages(
    page: Page, most_tokens: int, fewest_tokens: int, sources: Sources
) -> Iterator[Page | str]:
    """Cut a page into passages between two lengths; a shorter one is left out by that name."""
    for number, piece in enumerate(chunks(page.text, most_tokens, sources.num_tokens)):
        if sources.num_tokens(piece.strip()) < fewest_tokens:
            yield "short_passage"
        else:
            yield Page(f"{page.id}#{number}", piece.strip(), page.metadata)
