import json

import pytest

from plait.core.errors import ConfigError, DataError
from plait.data.benchmarks import read_items
from plait.data.quality_settings import DecontaminateSettings


def read(tmp_path, *rows, held_out=(), **changes):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (tmp_path / "set.jsonl").write_text("\n".join(lines) + "\n")
    table = {"name": "set", "paths": [f"{tmp_path}/set.jsonl"], **changes}
    return read_items(DecontaminateSettings.parse({"benchmarks": [table]}, "test"), held_out)


def test_sets_of_many_shapes_are_read(tmp_path):
    def user(text):
        return {"role": "user", "content": text}

    system = {"role": "system", "content": "Be kind."}
    items = read(
        tmp_path,
        {"question": "How many?", "answer": "3"},
        {"key": 1000, "prompt": "Write a poem.", "kwargs": [{}]},
        {"id": "b", "question": [[user("Call it."), user("Again.")]]},
        {"id": "c", "question": "Which?", "choices": {"text": ["this", "that"], "label": ["A"]}},
        {"task_id": "d", "prompt": [system, user("Hi?"), {"role": "assistant", "content": "Hm."}]},
    )
    assert [item.id for item in items] == ["set.jsonl:1", "1000", "b", "c", "d"]
    assert [item.text for item in items] == [
        "How many?",
        "Write a poem.",
        "Call it.\nAgain.",
        "Which?\nthis\nthat\nA",
        "Hi?",
    ]
    [item] = read(tmp_path, {"question": "x", "passage": "Long ago"}, fields=["passage"])
    assert (item.benchmark, item.text) == ("set", "Long ago")


def test_held_out_questions_of_stages_are_read(tmp_path):
    folder = tmp_path / "05_sft" / "data"
    folder.mkdir(parents=True)
    row = {"id": "q1", "prompt": [{"role": "user", "content": "Cards: A3."}]}
    (folder / "test.jsonl").write_text(json.dumps(row) + "\n")
    [item] = read_items(DecontaminateSettings(), [tmp_path / "05_sft"])
    assert item == ("05_sft", "q1", "Cards: A3.")
    with pytest.raises(DataError, match="a stage under benchmarks holds its questions so"):
        read_items(DecontaminateSettings(), [tmp_path])


def test_files_without_questions_are_named_with_what_they_have(tmp_path):
    with pytest.raises(
        DataError, match=r"set.jsonl, line 2: no text in question, .* has a, b; name"
    ):
        read(tmp_path, {"question": "x"}, {"a": 1, "b": 2})
    with pytest.raises(DataError, match="no text in stem, options"):
        read(tmp_path, {"stem": "x"}, fields=["stem", "options"])
    with pytest.raises(DataError, match="line 1: not JSON"):
        read(tmp_path, "{")
    with pytest.raises(DataError, match="not an object"):
        read(tmp_path, "[1]")
    with pytest.raises(DataError, match="no text in question"):
        read(tmp_path, {"question": "  "})
    with pytest.raises(DataError, match="no questions to keep out"):
        read(tmp_path, "")
    with pytest.raises(ConfigError, match=r"decontaminate.benchmarks 'set': no file matches"):
        read(tmp_path, paths=[f"{tmp_path}/none.jsonl"])
