"""How documents enter, leave and travel between the passes of curation: datatrove readers, writers.

Between two passes each task has one file, `<task>.jsonl`; a task without documents has none. That
numbering is what deduplication refers to, so a reader never re-assigns files to tasks.
"""

from collections.abc import Iterator
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.jsonl import JsonlWriter

from plait.data.collect import Shard
from plait.data.decontaminate import FOUND
from plait.data.extract import decode, is_text
from plait.data.warc import Record, read_records

_STEP_OF = {"exact_duplicate": "exact", "near_duplicate": "near"}
_HEAD_CHARACTERS = 600


class PassWriter(JsonlWriter):
    """Writes the documents that go on to the next pass."""

    name = "pass writer"

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), output_filename="${rank}.jsonl", compression=None)


class DropWriter(JsonlWriter):
    """Writes dropped documents, each with its step and reason, and with its text if asked.

    If not, the first of a task for each reason still show how they begin.
    """

    name = "drop writer"

    def __init__(self, folder: Path, with_text: bool, reason: str | None = None) -> None:
        super().__init__(str(folder), output_filename="${rank}.jsonl", compression=None)
        self.with_text = with_text
        self.reason = reason
        self.adapter = self.describe
        self.shown: set[str] = set()

    def describe(self, document: Document) -> dict:
        """Return what is noted of a dropped document."""
        metadata = document.metadata
        reason = self.reason or metadata["drop_reason"]
        facts = {
            "id": document.id,
            "category": metadata["category"],
            "language": metadata.get("language"),
            "step": metadata["drop_step"] if self.reason is None else _STEP_OF[self.reason],
            "reason": reason,
            "bytes": len(document.text.encode("utf-8", "replace")),
            "url": metadata.get("url"),
        }
        if FOUND in metadata:
            facts[FOUND] = metadata[FOUND]
        if self.with_text:
            return facts | {"text": document.text}
        if reason in self.shown:
            return facts
        self.shown.add(reason)
        return facts | {"text": document.text[:_HEAD_CHARACTERS]}

    def drop(self, document: Document, step: str, reason: str, rank: int) -> None:
        """Record a document's end."""
        document.metadata |= {"drop_step": step, "drop_reason": reason}
        self.write(document, rank)


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


def read_shard(shard: Shard, max_bytes: int) -> Iterator[tuple[Document, str | None]]:
    """Yield each page of a shard as a document, with the reason to drop it if there is one.

    Reasons: `truncated_record`, `broken_encoding`, `too_long_page`, `not_ok_status`, `not_text`,
    `undecodable`.
    """
    for record in read_records(shard.path, max_bytes):
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
