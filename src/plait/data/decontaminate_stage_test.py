import json

import pytest

from plait.core.errors import DataError
from plait.data.decontaminate_stage import DecontaminateStageSettings, run
from plait.data.decontaminate_test import PROSE, ROWS


def write_rows(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(file)


def talk(question):
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "42"}]
    }


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def settings(tmp_path, **changes):
    paths = [write_rows(tmp_path / "set.jsonl", [{"question": row["question"]} for row in ROWS])]
    table = {"benchmarks": [{"name": "ours", "paths": paths}], **changes}
    return DecontaminateStageSettings.parse(table, "test")


def test_synthetic_text_and_conversations_lose_the_questions(tmp_path):
    synth = tmp_path / "synth"
    texts = [PROSE, ROWS[0]["question"], ROWS[0]["other"]]
    rows = [{"text": text, "id": str(i), "metadata": {"é": i}} for i, text in enumerate(texts)]
    write_rows(synth / "documents/train/stem.jsonl", rows)
    write_rows(synth / "documents/validation/stem.jsonl", rows[1:])
    write_rows(synth / "conversations.jsonl", [talk(ROWS[1]["question"]), talk(ROWS[1]["other"])])
    mine = write_rows(tmp_path / "mine.jsonl", [talk(ROWS[2]["other"])])
    out = tmp_path / "out"
    metrics = run(settings(tmp_path, files=[mine]), {"documents": synth}, out)
    assert metrics == {"rows_in": 8, "rows_kept": 5, "removed.benchmark_words": 3}
    assert read(out / "documents/train/stem.jsonl") == [rows[0], rows[2]]
    assert read(out / "documents/validation/stem.jsonl") == [rows[2]]
    assert read(out / "conversations.jsonl") == [talk(ROWS[1]["other"]), talk(ROWS[2]["other"])]
    report = json.loads((out / "contamination.json").read_text())
    assert report["benchmarks"]["ours"]["questions_found"] == 2
    assert [row["id"] for row in report["removed"]] == ["1", "1", "conversations.jsonl:1"]


def test_held_out_questions_of_a_stage_are_a_benchmark(tmp_path):
    row = {"id": "q", "prompt": talk(ROWS[3]["question"])["messages"][:1]}
    write_rows(tmp_path / "sft/data/test.jsonl", [row])
    mine = write_rows(tmp_path / "mine.jsonl", [talk(row["question"]) for row in ROWS[:6]])
    chosen = DecontaminateStageSettings.parse({"files": [mine]}, "test")
    metrics = run(chosen, {"benchmarks": tmp_path / "sft"}, tmp_path / "out")
    assert metrics["rows_kept"] == 5
    assert not list((tmp_path / "out/documents").rglob("*.jsonl"))


def test_rows_that_cannot_be_read_are_named(tmp_path):
    for rows, message in (
        ([{"prompt": "x"}], "mine.jsonl, line 1: not an object with a text or messages"),
        ([{"text": 3}], "line 1: not an object"),
        ([{"text": PROSE}, [3]], "line 2: not an object"),
        ([], "nothing to look through"),
    ):
        mine = write_rows(tmp_path / "mine.jsonl", rows)
        with pytest.raises(DataError, match=message):
            run(settings(tmp_path, files=[mine]), {}, tmp_path / "out")
    deep = tmp_path / "deep.jsonl"
    deep.write_text("[" * 100_000 + "\n")
    with pytest.raises(DataError, match=r"deep\.jsonl, line 1: not an object with a text"):
        run(settings(tmp_path, files=[str(deep)]), {}, tmp_path / "out")
    chosen = settings(tmp_path, files=[write_rows(tmp_path / "mine.jsonl", [{"text": PROSE}])])
    (tmp_path / "set.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(DataError, match=r"set\.jsonl, line 1: not JSON .*a benchmark is JSONL"):
        run(chosen, {}, tmp_path / "out")
