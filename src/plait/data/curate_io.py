"""How documents enter, leave and travel between the passes of curation: datatrove readers, writers.

Between two passes each task has one file, `<task>.jsonl`; a task without documents has none. That
numbering is what deduplication refers to, so a reader never re-assigns files to tasks.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.jsonl import JsonlWriter

from plait.data.collect import Shard
from plait.data.extract import decode, is_text
from plait.data.warc import Record, read_records

PAGES_IN = "pages_in/"
"""Prefix of the counters of pages read, one per category, in the task's statistics."""


class PassWriter(JsonlWriter):
    """Writes the documents that go on to the next pass."""

    name = "pass writer"

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), output_filename="${rank}.jsonl", compression=None)


class DropWriter(JsonlWriter):
    """Writes dropped documents, each with its reason; their text only if asked."""

    name = "drop writer"

    def __init__(self, folder: Path, with_text: bool, reason: str | None = None) -> None:
        super().__init__(str(folder), output_filename="${rank}.jsonl", compression=None)
        self.with_text = with_text
        self.reason = reason
        self.adapter = self.describe

    def describe(self, document: Document) -> dict:
        """Return what is noted of a dropped document."""
        metadata = document.metadata
        facts = {
            "id": document.id,
            "category": metadata["category"],
            "reason": self.reason or metadata.get("filter_reason") or "unnamed",
            "url": metadata.get("url"),
        }
        return facts | {"text": document.text} if self.with_text else facts


class PassReader(PipelineStep):
    """Reads the documents that the same task wrote in an earlier pass."""

    type = "📖 - READER"
    name = "pass reader"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(
        self, data: Iterator[Document] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """Yield the task's documents."""
        import orjson

        path = self.folder / f"{rank:05d}.jsonl"
        if not path.exists():
            return
        with path.open("rb") as lines:
            for line in lines:
                fields = orjson.loads(line)
                yield Document(fields["text"], fields["id"], metadata=fields["metadata"])


class PageReader(PipelineStep):
    """Reads the pages of WARC shards as documents of raw, decoded text.

    Task `rank` reads shards rank, rank + world_size, ... What cannot be a page of text is dropped
    here: `truncated_record`, `broken_encoding`, `not_ok_status`, `not_text`, `undecodable`.
    """

    type = "📖 - READER"
    name = "WARC pages"

    def __init__(self, shards: Sequence[Shard], drops: DropWriter) -> None:
        super().__init__()
        self.shards = list(shards)
        self.drops = drops

    def run(
        self, data: Iterator[Document] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """Yield the pages of this task's shards."""
        with self.drops:
            for shard in self.shards[rank::world_size]:
                for document, reason in read_shard(shard):
                    self.stat_update(PAGES_IN + shard.category)
                    if reason is None:
                        yield document
                    else:
                        self.stat_update(f"dropped_{reason}")
                        document.metadata["filter_reason"] = reason
                        self.drops.write(document, rank)


def read_shard(shard: Shard) -> Iterator[tuple[Document, str | None]]:
    """Yield each page of a shard as a document, with the reason to drop it if there is one."""
    for record in read_records(shard.path):
        text = None
        reason = record.fault or _unusable(record)
        if reason is None:
            text = decode(record.body, record.charset)
            reason = "undecodable" if text is None else None
        metadata = {
            "category": shard.category,
            "source": record.source or shard.source,
            "url": record.url,
            "licence": record.licence or shard.licence,
            "media_type": record.media_type,
        }
        yield Document(text or "", record.id, metadata=metadata), reason


def _unusable(record: Record) -> str | None:
    if record.status not in (None, 200):
        return "not_ok_status"
    return None if is_text(record.media_type, record.body) else "not_text"
