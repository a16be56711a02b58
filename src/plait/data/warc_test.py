import gzip
import io

import pytest
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from plait.core.errors import DataError
from plait.data.pages import Page
from plait.data.warc import read_records, write_shards

PAGES = [
    Page(
        f"file:///doc/{i}.html", "text/html", b"<p>page %d</p>" % i * (30 + i), "debian:x=1", "GPL"
    )
    for i in range(5)
]


def write_warc(path, payload, headers, status="200 OK", kind="response", compressed=True):
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=compressed)
        http = StatusAndHeaders(status, headers, protocol="HTTP/1.1")
        record = writer.create_warc_record(
            "http://example.org/",
            kind,
            payload=io.BytesIO(payload),
            http_headers=http if kind == "response" else None,
            length=len(payload),
            warc_content_type="" if kind == "response" else dict(headers)["Content-Type"],
        )
        writer.write_record(record)
    return path


def test_pages_come_back_and_other_readers_agree(tmp_path):
    assert write_shards(iter(PAGES), tmp_path, shard_pages=2) == 5
    shards = sorted(tmp_path.glob("*.warc.gz"))
    assert [shard.name for shard in shards] == [f"{i:05d}.warc.gz" for i in range(3)]
    records = [record for shard in shards for record in read_records(shard)]
    assert [record.body for record in records] == [page.body for page in PAGES]
    assert {(r.status, r.media_type, r.source, r.licence, r.fault) for r in records} == {
        (None, "text/html", "debian:x=1", "GPL", None)
    }
    assert [record.url for record in records] == [page.url for page in PAGES]
    with shards[0].open("rb") as file:
        theirs = [record.content_stream().read() for record in ArchiveIterator(file)]
    assert theirs == [page.body for page in PAGES[:2]]


def test_the_same_pages_give_the_same_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_shards(PAGES, tmp_path / "a")
    write_shards(PAGES, tmp_path / "b")
    name = "00000.warc.gz"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("compressed", [True, False])
def test_a_file_cut_anywhere_gives_what_is_whole_before_the_cut(tmp_path, compressed):
    write_shards(PAGES, tmp_path)
    whole = (tmp_path / "00000.warc.gz").read_bytes()
    if not compressed:
        whole = gzip.decompress(whole)
    marker = b"\x1f\x8b\x08" if compressed else b"WARC/1.0\r\n"
    starts = [i for i in range(len(whole)) if whole.startswith(marker, i)]
    assert len(starts) == len(PAGES)
    # The last bytes of an uncompressed record are blank lines, which nobody misses.
    tolerated = 0 if compressed else 4
    cut_file = tmp_path / "cut.warc.gz"
    for cut in range(20, len(whole), 41):
        cut_file.write_bytes(whole[:cut])
        records = list(read_records(cut_file))
        good = [record.body for record in records if record.fault is None]
        num_whole = sum(end <= cut for end in [*starts[1:], len(whole)])
        assert good[:num_whole] == [page.body for page in PAGES[:num_whole]]
        assert len(good) <= num_whole + 1
        assert good == [page.body for page in PAGES[: len(good)]]
        if all(not start <= cut <= start + tolerated for start in [*starts[1:], len(whole)]):
            inside = cut not in starts and cut + tolerated < ([*starts, len(whole)][num_whole + 1])
            faults = [record.fault for record in records]
            assert faults[-1] == ("truncated_record" if inside else None), cut
            assert faults[:-1] == [None] * (len(faults) - 1)


def test_damage_in_the_middle_keeps_what_comes_before(tmp_path):
    write_shards(PAGES, tmp_path)
    path = tmp_path / "00000.warc.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20] = b"x" * 20
    path.write_bytes(bytes(data))
    records = list(read_records(path))
    assert [record.fault for record in records][-1] == "truncated_record"
    assert 1 <= sum(record.fault is None for record in records) < len(PAGES)


def test_a_file_compressed_as_one_piece_is_read(tmp_path):
    write_shards(PAGES, tmp_path)
    path = tmp_path / "00000.warc.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())))
    assert [record.fault for record in read_records(path)] == [None] * len(PAGES)


def test_what_is_no_warc_file_is_refused(tmp_path):
    path = tmp_path / "notes.warc"
    path.write_text("these are notes\n" * 9)
    with pytest.raises(DataError, match=r"notes\.warc: not a WARC file .* remove it"):
        list(read_records(path))


def test_transfer_and_content_encodings_are_undone(tmp_path):
    body = gzip.compress(b"<p>hi</p>")
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    headers = [
        ("Content-Type", "text/html; charset=EUC-KR"),
        ("Content-Encoding", "gzip"),
        ("Transfer-Encoding", "chunked"),
    ]
    (record,) = read_records(write_warc(tmp_path / "a.warc.gz", chunked, headers))
    assert (record.body, record.charset, record.fault) == (b"<p>hi</p>", "euc-kr", None)


def test_a_broken_encoding_harms_only_its_record(tmp_path):
    headers = [("Content-Type", "text/html"), ("Content-Encoding", "gzip")]
    first = write_warc(tmp_path / "a", b"not gzip", headers).read_bytes()
    second = write_warc(tmp_path / "b", b"<p>fine</p>", headers[:1]).read_bytes()
    (tmp_path / "c").write_bytes(first + second)
    records = list(read_records(tmp_path / "c"))
    assert [record.fault for record in records] == ["broken_encoding", None]
    assert records[1].body == b"<p>fine</p>"


@pytest.mark.parametrize("kind", ["resource", "conversion"])
def test_records_without_http_are_pages_too(tmp_path, kind):
    path = write_warc(tmp_path / "a", b"plain", [("Content-Type", "text/plain")], kind=kind)
    (record,) = read_records(path)
    assert (record.body, record.status, record.media_type) == (b"plain", None, "text/plain")


def test_a_record_of_a_type_that_nobody_knows_is_skipped(tmp_path):
    one = write_warc(
        tmp_path / "a", b"plain", [("Content-Type", "text/plain")], kind="resource"
    ).read_bytes()
    strange = gzip.compress(gzip.decompress(one).replace(b"WARC-Type: resource", b"WARC-Type: x"))
    (tmp_path / "b").write_bytes(one + strange + one)
    assert [record.body for record in read_records(tmp_path / "b")] == [b"plain"] * 2


def test_the_status_is_told(tmp_path):
    headers = [("Content-Type", "text/html")]
    (record,) = read_records(write_warc(tmp_path / "a", b"gone", headers, status="404 Not Found"))
    assert record.status == 404


@pytest.mark.parametrize("packed", [False, True])
def test_a_page_of_50_megabytes_is_left_unread_and_the_next_is_not(tmp_path, packed):
    huge = b"<p>word</p>" * 4_600_000
    headers = [("Content-Type", "text/html")]
    encoding = [("Content-Encoding", "gzip")] if packed else []
    body = gzip.compress(huge) if packed else huge
    first = write_warc(tmp_path / "a", body, headers + encoding).read_bytes()
    second = write_warc(tmp_path / "b", b"<p>fine</p>", headers).read_bytes()
    (tmp_path / "c").write_bytes(first + second)
    records = list(read_records(tmp_path / "c"))
    assert [(record.fault, record.body) for record in records] == [
        ("too_long_page", b""),
        (None, b"<p>fine</p>"),
    ]
