import json

import pytest

from plait.core.errors import DataError
from plait.synth.rows import Seed, read_pages, read_rows


def test_blank_lines_are_no_rows(sources, tmp_path):
    file = tmp_path / "seeds.jsonl"
    file.write_text('{"question": "a", "text": "x"}\n\n \n{"question": "b", "text": "y"}\n\n')
    assert [(row.id, row.question) for row in read_rows([file], Seed)] == [
        ("seeds.jsonl:1", "a"),
        ("seeds.jsonl:4", "b"),
    ]
    alone = sources._replace(documents=lambda: iter(()))
    assert [page.id for page in read_pages(alone, [file])] == ["seeds.jsonl:1", "seeds.jsonl:4"]


@pytest.mark.parametrize("line", ["{", "[]", json.dumps({"question": 3})])
def test_what_is_no_row_is_named_by_file_and_line(tmp_path, line):
    file = tmp_path / "seeds.jsonl"
    file.write_text('{"question": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"seeds\.jsonl, line 2: "):
        list(read_rows([file], Seed))
