"""WARC files: written from pages, read as they come from a crawl.

Writing: one `resource` record a page (WARC's type for files that no server sent), its licence and
source as header fields of their own; ids and dates follow from the page, so the same pages give the
same bytes.
Reading: `response`, `resource` and `conversion` records count as pages. A file that ends inside a
record, or whose compression is broken, gives everything before that place.
"""

import io
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from plait.core.errors import DataError
from plait.data.pages import Page

SHARD_PAGES = 200
MAX_PAGE_BYTES = 10_000_000
_HEADER_BYTES = 1 << 16
_DATE = "2000-01-01T00:00:00Z"
_CHUNK_BYTES = 1 << 16


class Record(NamedTuple):
    """One page of a WARC file, or the place where the file stops being readable."""

    id: str
    url: str
    status: int | None
    """HTTP status; None for records that are not HTTP responses."""
    media_type: str
    charset: str | None
    """As the HTTP header declares it."""
    body: bytes
    source: str | None
    licence: str | None
    fault: str | None
    """Why the record cannot be used: `truncated_record`, `broken_encoding` or `too_long_page`; None
    if it can."""


def write_shards(pages: Iterable[Page], folder: Path, shard_pages: int = SHARD_PAGES) -> int:
    """Write pages into `00000.warc.gz`, `00001.warc.gz`, ... and return how many there were."""
    from warcio.warcwriter import WARCWriter

    num_pages = 0
    file: IO[bytes] | None = None
    writer = None
    for page in pages:
        if num_pages % shard_pages == 0:
            if file is not None:
                file.close()
            file = (folder / f"{num_pages // shard_pages:05d}.warc.gz").open("wb")
            writer = WARCWriter(file, gzip=True)
        assert writer is not None
        fields = {"WARC-Record-ID": f"<urn:uuid:{_page_id(page)}>", "WARC-Date": _DATE}
        fields["Source"] = page.source
        if page.licence:
            fields["Licence"] = page.licence
        record = writer.create_warc_record(
            page.url,
            "resource",
            payload=io.BytesIO(page.body),
            length=len(page.body),
            warc_content_type=page.media_type,
            warc_headers_dict=fields,
        )
        writer.write_record(record)
        num_pages += 1
    if file is not None:
        file.close()
    return num_pages


def read_records(path: Path, max_bytes: int = MAX_PAGE_BYTES) -> Iterator[Record]:
    """Yield the pages of a WARC file in order; the last has a fault if the file ends too early.

    No more than `max_bytes` of a page are held, also where it is compressed within its record.
    Raises: DataError if the file is no WARC file at all.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    page_types = (WarcRecordType.response, WarcRecordType.resource, WarcRecordType.conversion)
    with path.open("rb") as file:
        stream = _Inflating(file)
        records = ArchiveIterator(stream, parse_http=False)  # pyright: ignore[reportArgumentType]
        index = 0
        while True:
            try:
                record = next(records, None)
            except OSError as error:
                if index == 0:
                    raise DataError(f"{path}: not a WARC file ({error}); remove it") from None
                yield _truncated(path, index)
                return
            if record is None:
                break
            block = record.reader.read(max_bytes + _HEADER_BYTES)
            size = len(block)
            while more := record.reader.read(_CHUNK_BYTES):
                size += len(more)
            whole = "Content-Length" in record.headers and size == record.content_length
            if not whole or "WARC-Type" not in record.headers:
                yield _truncated(path, index)
                return
            if record.record_type in page_types:
                page = _page_record(record, block, f"{path.name}#{index}", max_bytes)
                too_long = size > len(block) or len(page.body) > max_bytes
                yield page._replace(body=b"", fault="too_long_page") if too_long else page
            index += 1
        if stream.ends_early:
            yield _truncated(path, index)


def _page_record(record, block: bytes, name: str, max_bytes: int) -> Record:
    record_id = (record.record_id or name).removeprefix("<urn:uuid:").removesuffix(">")
    fields = record.headers
    payload = _Payload(None, fields.get("Content-Type") or "", None, block)
    fault = None
    if record.is_http:
        try:
            payload = _http_payload(block, max_bytes)
        except OSError:
            fault = "broken_encoding"
    return Record(
        record_id,
        fields.get("WARC-Target-URI") or "",
        payload.status,
        fields.get("WARC-Identified-Payload-Type") or payload.media_type,
        payload.charset,
        payload.body,
        fields.get("Source"),
        fields.get("Licence"),
        fault,
    )


class _Payload(NamedTuple):
    status: int | None
    media_type: str
    charset: str | None
    body: bytes


def _http_payload(block: bytes, max_bytes: int) -> _Payload:
    """Parse an HTTP response, undoing its transfer and content encodings.

    The record is built anew from its bytes: a fault then stays with it and does not reach the next.
    """
    from fastwarc.warc import WarcRecord, WarcRecordType

    record = WarcRecord()
    record.init_headers(record_type=WarcRecordType.response)
    record.set_bytes_content(block)
    record.is_http = True
    record.parse_http(auto_decode="all")
    status = record.http_headers.status_code if record.http_headers else None
    return _Payload(
        status or 0,
        record.http_content_type or "",
        record.http_charset,
        record.reader.read(max_bytes + 1),
    )


def _truncated(path: Path, index: int) -> Record:
    return Record(
        f"{path.name}#{index}", "", None, "", None, b"", None, None, fault="truncated_record"
    )


def _page_id(page: Page) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{page.source} {page.url}")


class _Inflating:
    """A stream of a file's bytes, gzip members undone; a damaged member ends it quietly.

    `ends_early` then says so, which libraries that skip the rest in silence do not.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        start = file.read(2)
        file.seek(0)
        self.inflate = zlib.decompressobj(wbits=31) if start == b"\x1f\x8b" else None
        self.pending = b""
        self.position = 0
        self.within_member = False
        self.ends_early = False

    def tell(self) -> int:
        return self.position

    def read(self, size: int = _CHUNK_BYTES) -> bytes:
        data = self.file.read(size) if self.inflate is None else self._inflated(size)
        self.position += len(data)
        return data

    def _inflated(self, size: int) -> bytes:
        while not self.ends_early:
            self.pending = self.pending or self.file.read(_CHUNK_BYTES)
            if not self.pending:
                self.ends_early = self.within_member
                return b""
            try:
                assert self.inflate is not None
                data = self.inflate.decompress(self.pending, max(size, 1))
            except zlib.error:
                self.ends_early = True
                break
            self.within_member = not self.inflate.eof
            if self.inflate.eof:
                self.pending = self.inflate.unused_data
                self.inflate = zlib.decompressobj(wbits=31)
            else:
                self.pending = self.inflate.unconsumed_tail
            if data:
                return data
        return b""
