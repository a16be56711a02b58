"""The datatrove step that takes each document along the steps of its category.

One task is one shard, so one category: `Walk` chains the category's steps over the shard's
documents, counts documents and bytes behind every step, and records each drop. What it counts
ends in the task's statistics as `<category>/<step>/documents` and `.../bytes`.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from plait.data.collect import Shard
from plait.data.curate_io import DropWriter, read_shard
from plait.data.curate_settings import CategorySettings
from plait.data.late import Tools, late_steps
from plait.data.steps import Ask, Step, Task, path_module
from plait.data.tiers import Cuts, tier_step

READ = "read"


class Walk(PipelineStep):
    """Base of the walks: before deduplication, from the shard; after it; and into tiers."""

    type = "🚶 - STEPS"
    name = "walk"

    def __init__(
        self,
        categories: Mapping[str, CategorySettings],
        shards: Sequence[Shard],
        drops: DropWriter,
        cache: Path,
        ask: Mapping[str, Ask],
    ) -> None:
        super().__init__()
        self.categories = dict(categories)
        self.shards = list(shards)
        self.drops = drops
        self.cache = cache
        self.ask = dict(ask)

    def run(
        self, data: Iterator[Document] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """Yield the documents that come through."""
        if rank >= len(self.shards):
            return
        shard = self.shards[rank]
        with self.drops:
            documents = self.enter(data, shard, rank)
            for step in self.steps_of(shard.category):
                record = functools.partial(self._drop, step=step.name, rank=rank)
                task = Task(shard.category, record, self.cache, self.ask)
                documents = self._counted(step.run(documents, task), shard.category, step.name)
            yield from documents

    def enter(self, data: Iterator[Document] | None, shard: Shard, rank: int) -> Iterator[Document]:
        """Yield what the first step gets: the documents of the pass before."""
        assert data is not None
        return data

    def steps_of(self, name: str) -> Sequence[Step]:
        """Return the steps that a category takes."""
        raise NotImplementedError

    def _drop(self, document: Document, reason: str, *, step: str, rank: int) -> None:
        self.drops.drop(document, step, reason, rank)

    def _counted(
        self, documents: Iterator[Document], category: str, step: str
    ) -> Iterator[Document]:
        for document in documents:
            self._count(category, step, len(document.text.encode("utf-8", "replace")))
            yield document

    def _count(self, category: str, step: str, num_bytes: int) -> None:
        self.stat_update(f"{category}/{step}/documents")
        self.stat_update(f"{category}/{step}/bytes", value=num_bytes)


class EarlyWalk(Walk):
    """From the WARC shard through the steps of the category's content."""

    name = "pages"

    def enter(self, data: Iterator[Document] | None, shard: Shard, rank: int) -> Iterator[Document]:
        """Yield the pages of the shard that are text; drop and count the others."""
        for document, reason in read_shard(shard, self.categories[shard.category].max_page_bytes):
            num_bytes = len(document.text.encode("utf-8", "replace"))
            self._count(shard.category, "in", num_bytes)
            if reason is None:
                self._count(shard.category, READ, num_bytes)
                yield document
            else:
                self._drop(document, reason, step=READ, rank=rank)

    def steps_of(self, name: str) -> Sequence[Step]:
        """Return the steps before deduplication."""
        category = self.categories[name]
        return path_module(category).steps(category)


class LateWalk(Walk):
    """Through what is asked of documents that are left after deduplication."""

    name = "late steps"

    def __init__(self, *args: Any, tools: Tools) -> None:
        super().__init__(*args)
        self.tools = tools

    def steps_of(self, name: str) -> Sequence[Step]:
        """Return the steps after deduplication."""
        return late_steps(self.categories[name], self.tools)


class TierWalk(Walk):
    """From the scores of a category to the categories that it is cut into."""

    name = "tiers"

    def __init__(self, *args: Any, cuts: Mapping[str, Cuts]) -> None:
        super().__init__(*args)
        self.cuts = dict(cuts)

    def steps_of(self, name: str) -> Sequence[Step]:
        """Return the one step that there is, or none."""
        tiers = self.categories[name].tiers
        return [tier_step(tiers, self.cuts[name])] if tiers else []
