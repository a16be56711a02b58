import pytest

from plait.core.errors import DataError
from plait.data.documents import read_documents


def test_a_document_without_id_is_named_by_file_and_line(tmp_path):
    file = tmp_path / "crawl.jsonl"
    file.write_text('{"text": "a", "id": "x"}\n{"text": "b"}\n')
    assert [row["id"] for row in read_documents([file])] == ["x", "crawl.jsonl:2"]


@pytest.mark.parametrize("line", ["{", "[]", '{"text": 1}', '{"text": "\\ud83d"}', "[" * 100_000])
def test_what_is_no_document_is_named_by_file_and_line(tmp_path, line):
    file = tmp_path / "crawl.jsonl"
    file.write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"crawl\.jsonl, line 2: "):
        list(read_documents([file]))
