import gzip
import json
import os

import pytest

from plait.align import records
from plait.align.records import (
    Refusals,
    conversation_messages,
    existing_files,
    preference_sides,
    prompt_messages,
    read_records,
)
from plait.core.errors import ConfigError, DataError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_bad_rows_are_named_by_file_and_line_and_the_rest_is_read(tmp_path, caplog):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n{\n[1]\n{"b": "\xe4"}\n{"c": 2}\n')
    refusals = Refusals()
    rows = list(read_records([file], refusals))
    assert rows == [
        {"a": 1, "id": f"{file}, line 1"},
        {"c": 2, "id": f"{file}, line 5"},
    ]
    assert [reason.split(": ")[0][-6:] for reason in refusals.reasons] == [
        "line 2",
        "line 3",
        "line 4",
    ]
    refusals.report(tmp_path / "refused.txt")
    assert (tmp_path / "refused.txt").read_text().count("\n") == 3
    assert "3 rows refused" in caplog.text
    with pytest.raises(DataError, match="line 2: not JSON"):
        list(read_records([file], Refusals(strict=True)))
    with pytest.raises(ConfigError, match=r"none\.jsonl does not exist"):
        list(read_records([tmp_path / "none.jsonl"], refusals))


def test_an_array_is_read_as_rows_and_blank_lines_are_none(tmp_path):
    (tmp_path / "array.json").write_text('[\n  {"a": 1},\n  [],\n  {"a": 2}\n]\n')
    (tmp_path / "lines.json").write_text('{"a": 3}\n\n{"a": 4}\n')
    refusals = Refusals()
    assert [row["a"] for row in read_records([tmp_path], refusals)] == [1, 2, 3, 4]
    assert refusals.reasons == [
        f"{tmp_path / 'array.json'}, line 2: a row is a JSON object; found []"
    ]
    (tmp_path / "array.json").write_text('[{"a": 1},')
    with pytest.raises(DataError, match=r"array\.json: cannot be read: "):
        list(read_records([tmp_path / "array.json"], refusals))


def test_no_row_is_too_odd_to_be_named(tmp_path, monkeypatch):
    monkeypatch.setattr(records.logger, "disabled", True)  # xdist cannot carry such names
    file = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    file.write_text('"\\ud83d"\n' + "[" * 100_000 + '\n{"a": 1}\n')
    refusals = Refusals()
    assert [row["a"] for row in read_records([file], refusals)] == [1]
    refusals.report(tmp_path / "refused.txt")
    first, second = (tmp_path / "refused.txt").read_text().splitlines()
    assert first.endswith(r"caf\udce9.jsonl, line 1: a row is a JSON object; found \ud83d")
    assert "line 2: not JSON: maximum recursion depth" in second


def test_parquet_as_data_sets_come_from_the_hub(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    rows = [
        {"messages": [user("Hi"), assistant("Ho")], "tools": '[{"name": "t"}]'},
        {"messages": [user("A")]},
    ]
    write_table(pyarrow.Table.from_pylist(rows), tmp_path / "talk.parquet")
    first, second = read_records([tmp_path / "talk.parquet"], Refusals(strict=True))
    assert first["messages"] == rows[0]["messages"]
    assert first["tools"] == [{"name": "t"}]
    assert "tools" not in second
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match=r"bad\.parquet: not readable"):
        list(read_records([tmp_path / "bad.parquet"], Refusals()))


def test_folders_compressed_lines_and_public_sets(tmp_path):
    query = {"id": 1, "query": "Hi", "tools": "[]", "answers": "[]"}
    folder = tmp_path / "xlam"
    folder.mkdir()
    for name, rows in (("b.jsonl", [query, {"text": "other"}]), ("a.jsonl.gz", [query])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        data = gzip.compress(text.encode()) if name.endswith("gz") else text.encode()
        (folder / name).write_bytes(data)
    (folder / "README.md").write_text("no rows")
    names = [file.name for file in existing_files([f"xlam:{folder}"])]
    assert names == ["a.jsonl.gz", "b.jsonl"]
    refusals = Refusals()
    rows = list(read_records([f"xlam:{folder}"], refusals))
    assert [row["messages"][0]["content"] for row in rows] == ["Hi", "Hi"]
    assert [row["id"].rpartition("/")[2] for row in rows] == [
        "a.jsonl.gz, line 1",
        "b.jsonl, line 1",
    ]
    assert "b.jsonl, line 2: not of the form xlam" in refusals.reasons[0]
    with pytest.raises(ConfigError, match=r"unknown form 'xlm'; did you mean 'xlam'"):
        existing_files([f"xlm:{folder}"])
    (folder / "a.jsonl.gz").write_bytes(b"no")
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: cannot be read"):
        list(read_records([str(folder)], refusals))


def test_what_datasets_saved_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    rows = [{"messages": [user("Hi"), assistant("Ho")]}, {"messages": [user("A")]}]
    table = pyarrow.Table.from_pylist(rows)
    path = tmp_path / "data-00000-of-00001.arrow"
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    (tmp_path / "state.json").write_text("{}")
    found = list(read_records([tmp_path], Refusals(strict=True)))
    assert [row["messages"] for row in found] == [row["messages"] for row in rows]


def test_prompt_and_completion_are_a_conversation_too():
    text = {"prompt": "Hi", "completion": "Ho"}
    turns = {"prompt": [user("Hi")], "completion": [assistant("Ho")]}
    for record in (text, turns, {"messages": [user("Hi"), assistant("Ho")]}):
        assert conversation_messages(record) == [user("Hi"), assistant("Ho")]
    with pytest.raises(DataError, match="needs a list of messages under `messages`"):
        conversation_messages({"prompt": "Hi"})


def test_fields_that_a_table_fills_in_for_other_rows_are_not_there(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    def call(**arguments):
        function = {"name": "weather", "arguments": arguments}
        return {"messages": [user("Hi"), assistant("") | {"tool_calls": [{"function": function}]}]}

    rows = [call(city="Rome"), call(ticker="X")]
    write_table(pyarrow.Table.from_pylist(rows), tmp_path / "talk.parquet")
    found = read_records([tmp_path / "talk.parquet"], Refusals(strict=True))
    assert [record["messages"] for record in found] == [row["messages"] for row in rows]


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("not json", "`tools` is a text that is not JSON"),
        ({"name": "f"}, "`tools` holds a list of declarations"),
        (["f"], "not JSON"),
    ],
)
def test_tools_that_declare_nothing_are_refused(tmp_path, tools, message):
    row = {"messages": [user("Hi"), assistant("Ho")], "tools": " "}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    [record] = read_records([tmp_path / "a.jsonl"], Refusals(strict=True))
    assert not record["tools"]
    (tmp_path / "a.jsonl").write_text(json.dumps(row | {"tools": tools}))
    with pytest.raises(DataError, match=f"line 1.*{message}"):
        list(read_records([tmp_path / "a.jsonl"], Refusals(strict=True)))


def test_a_trace_within_the_text_is_a_trace():
    turn, text = assistant("4") | {"reasoning_content": "2 + 2"}, "<think>\n2 + 2\n</think>\n\n4"
    for record in (
        {"messages": [user("Q"), assistant(text)]},
        {"prompt": "Q", "completion": text},
        {"prompt": [user("Q")], "completion": [assistant(text)]},
    ):
        assert conversation_messages(record) == [user("Q"), turn]
    sides = {"prompt": "Q", "chosen": text, "rejected": "5"}
    assert preference_sides(sides) == ([user("Q")], [turn], [assistant("5")])
    assert conversation_messages({"messages": [user(text), turn]})[0] == user(text)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Q", "chosen": "good", "rejected": "bad"},
        {"prompt": [user("Q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"chosen": [user("Q"), assistant("good")], "rejected": [user("Q"), assistant("bad")]},
    ],
    ids=["texts", "conversation", "prompt within"],
)
def test_every_form_of_a_preference_that_trl_reads(record):
    assert preference_sides(record) == ([user("Q")], [assistant("good")], [assistant("bad")])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "Q", "chosen": "x", "rejected": "x"}, "equal, so there is no preference"),
        ({"prompt": "Q", "chosen": "x"}, "a list of messages under `rejected`"),
        ({"prompt": "Q", "chosen": " ", "rejected": "y"}, "`chosen` is empty"),
        ({"prompt": "", "chosen": "x", "rejected": "y"}, "a list of messages under `prompt`"),
        ({"chosen": "x", "rejected": "y"}, "no `prompt`"),
        ({"prompt": "Q", "chosen": [user("x")], "rejected": "y"}, "`chosen` must end with an"),
        ({"prompt": "Q", "chosen": [], "rejected": "y"}, "`chosen` holds messages"),
        ({"prompt": [assistant("x")], "chosen": "x", "rejected": "y"}, "an assistant's turn"),
    ],
)
def test_preferences_that_teach_nothing_are_named(record, message):
    with pytest.raises(DataError, match=f"r7: .*{message}"):
        preference_sides({"id": "r7", **json.loads(json.dumps(record))})


def test_a_prompt_is_a_text_or_messages():
    assert prompt_messages({"prompt": "Q"}) == [user("Q")]
    assert prompt_messages({"prompt": [user("Q")]}) == [user("Q")]
    with pytest.raises(DataError, match="needs a list of messages under `prompt`"):
        prompt_messages({})
