"""What goes wrong around a generator: one clear sentence, nothing lost, nothing asked twice."""

import json
import os
import sqlite3
import subprocess
import sys
from functools import partial

import pytest

from plait.core.errors import ConfigError, DataError, EndpointError
from plait.synth import stage
from plait.synth.author_test import PAIRS, author
from plait.synth.replies import ReplyStore
from plait.synth.scripted_test import asked, scripted
from plait.synth.stage_test import WORDS, pages, rows, settings
from plait.synth.vectors import open_snippets


def test_a_full_disk_loses_no_answer_that_was_kept(sources, tmp_path, monkeypatch):
    found = sources._replace(documents=pages(*(f"{WORDS} {i}" for i in range(6))))
    out = tmp_path / "out"

    class SmallDisk(ReplyStore):
        def __init__(self, file):
            super().__init__(file)
            self._database.execute("pragma max_page_count = 4")

    with scripted(lambda body: f"{asked(body)} {WORDS * 30}") as endpoint:
        chosen = settings(endpoint.url, max_in_flight=1)
        with monkeypatch.context() as small:
            small.setattr(stage, "ReplyStore", SmallDisk)
            with pytest.raises(DataError, match=r"cannot be kept: .*disk is full; make room"):
                stage.write(chosen, found, out)
        kept = ReplyStore(tmp_path / "cache" / "replies.sqlite")
        num_kept, num_lost = kept.calls.total(), len(endpoint.calls) - kept.calls.total()
        kept.close()
        assert num_kept > 0
        assert num_lost in (1, 2)  # the one that did not fit, and the one that had just been sent
        stage.write(chosen, found, out)
        assert len(endpoint.calls) == 6 + num_lost
    assert json.loads((out / "funnel.json").read_text())["steps"]["rephrased"]["items_kept"] == 6


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_disk_that_fills_up_under_the_output_leaves_no_half_of_it(sources, tmp_path):
    found = sources._replace(documents=pages(WORDS))
    full = tmp_path / "out" / "documents" / "train" / ".maths.jsonl.partial"
    full.parent.mkdir(parents=True)
    full.symlink_to("/dev/full")
    with scripted(lambda _: WORDS) as endpoint:
        chosen = settings(endpoint.url, validation_share=0)
        with pytest.raises(OSError, match="No space left"):  # in words: cli/main_test.py
            stage.write(chosen, found, tmp_path / "out")
        assert not (full.parent / "maths.jsonl").exists()
        full.unlink()
        stage.write(chosen, found, tmp_path / "out")
        assert len(endpoint.calls) == 1
    assert len(rows(full.parent / "maths.jsonl")) == 1


def test_an_endpoint_that_goes_down_stops_the_stage_which_then_resumes(sources, tmp_path):
    found = sources._replace(documents=pages(*(f"{WORDS} {i}" for i in range(8))))
    with scripted(author) as endpoint:
        chosen = settings(endpoint.url, "dialogue", max_in_flight=1, validation_share=0)
        few = found._replace(documents=pages(*(f"{WORDS} {i}" for i in range(3))))
        stage.write(chosen, few, tmp_path / "three")
        num_calls = len(endpoint.calls)
    with pytest.raises(EndpointError, match=r"unreachable.*see to the server, then run the same"):
        stage.write(chosen, found, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.jsonl"))
    with scripted(author) as endpoint:
        # Another address for the same model: what it said counts.
        again = settings(endpoint.url, "dialogue", max_in_flight=1, validation_share=0)
        stage.write(again, found, tmp_path / "out")
        assert num_calls + len(endpoint.calls) == 8
    assert len(rows(tmp_path / "out" / "documents/train/maths.jsonl")) == 8


def test_invalid_json_is_asked_for_again_and_then_dropped(sources, tmp_path):
    said = {
        "prose": "Here are some questions for you.",
        "half": '{"pairs": [{"kind": "yes_no", "question": "Is',
        "other": '{"pairs": [{"kind": "riddle", "question": "a?", "answer": "b"}]}',
        "empty": '{"pairs": []}',
        "fenced": "```json\n" + json.dumps({"pairs": PAIRS}) + "\n```",
    }
    found = sources._replace(documents=pages(*(f"{WORDS * 5} {word}" for word in said)))
    with scripted(lambda body: said[asked(body).split()[-1]]) as endpoint:
        chosen = settings(endpoint.url, "diverse_qa", num_asks=3, validation_share=0)
        stage.write(chosen, found, tmp_path)
        assert len(endpoint.calls) == 4 * 3 + 1
    step = json.loads((tmp_path / "funnel.json").read_text())["steps"]["questions"]
    assert step == {"items_in": 5, "items_kept": 1, "dropped": {"invalid_json": 4}}
    [kept] = rows(tmp_path / "documents/train/maths.jsonl")
    assert kept["id"] == "4#0"


def test_documents_that_give_nothing_to_work_on_are_accounted_for(sources, tmp_path):
    found = sources._replace(
        documents=pages(WORDS, "", " \n", "Too few words.", WORDS), num_documents=lambda: 5
    )
    with scripted(lambda _: WORDS) as endpoint:
        stage.write(settings(endpoint.url, validation_share=0), found, tmp_path)
    steps = json.loads((tmp_path / "funnel.json").read_text())["steps"]
    reasons = {"no_piece": 1, "short_passage": 2}
    assert steps["documents"] == {"items_in": 5, "items_kept": 2, "dropped": reasons}
    assert [row["id"] for row in rows(tmp_path / "dropped.jsonl")] == ["1", "2", "3"]


def test_metadata_that_is_no_unicode_is_written_escaped(sources, tmp_path):
    document = {"id": "0", "text": WORDS, "metadata": {"title": "half a pair: \ud83d"}}
    found = sources._replace(documents=lambda: iter([document]))
    with scripted(lambda _: WORDS) as endpoint:
        stage.write(settings(endpoint.url, validation_share=0), found, tmp_path)
    [row] = rows(tmp_path / "documents" / "train" / "maths.jsonl")
    assert row["metadata"]["title"] == document["metadata"]["title"]


HOLDER = """
import sys, time
from pymilvus import MilvusClient
client = MilvusClient(sys.argv[1])
client.create_collection("held", dimension=4)
print("held", flush=True)
time.sleep(60)  # killed long before
"""


def test_a_new_store_that_another_process_opens_at_the_same_time_is_waited_for(
    tmp_path, monkeypatch
):
    class Locked(sqlite3.Connection):
        tries = 0

        def execute(self, sql, *arguments):
            Locked.tries += "journal_mode" in sql
            if Locked.tries == 1:  # SQLite says so at once, whatever its timeout
                raise sqlite3.OperationalError("database is locked")
            return super().execute(sql, *arguments)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Locked))
    ReplyStore(tmp_path / "replies.sqlite").close()
    assert Locked.tries == 2


def test_a_milvus_file_that_is_in_use_is_named(tmp_path):
    pytest.importorskip("milvus_lite")
    address = str(tmp_path / "snippets.db")
    command = [sys.executable, "-c", HOLDER, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(ConfigError, match=r"snippets\.db cannot be opened.*wait for that one"),
            open_snippets(address, "mine", lambda texts: [[0.0] * 4 for _ in texts]),
        ):
            pass
        holder.kill()
    with open_snippets(address, "mine", lambda texts: [[0.0] * 4 for _ in texts]):
        pass  # a lock of a process that is gone holds nobody up


def test_a_milvus_server_that_does_not_answer_is_named():
    pytest.importorskip("pymilvus")
    with (
        pytest.raises(EndpointError, match=r"milvus http://127\.0\.0\.1:1 does not answer"),
        open_snippets("http://127.0.0.1:1", "mine", lambda texts: texts),
    ):
        pass


def test_progress_says_how_long_it_will_take_and_what_it_costs(
    sources, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("plait.core.progress.PLAIN_LINE_EVERY_S", 0.0)
    found = sources._replace(
        documents=pages(*(f"{WORDS} {i}" for i in range(12))), num_documents=lambda: 12
    )
    with scripted(lambda _: WORDS, latency_s=0.01) as endpoint:
        priced = settings(endpoint.url, max_in_flight=1).model_dump()
        priced["endpoints"]["default"] |= {"prompt_price": 1e6}
        chosen = stage.AnySynthSettings.parse(priced, "recipe")
        stage.write(chosen, found, tmp_path)
        lines = [line for line in capsys.readouterr().err.splitlines() if "rephrased" in line]
        assert len(lines) == 12
        assert "synth rephrased: 6/12 items, " in lines[5]
        assert ", ETA 0:0" in lines[5]
        assert f"{6 * 10} tokens read, " in lines[5]
        assert lines[5].endswith(", cost 60.00")
        # Items that an earlier run has answers for do not count as this run's pace.
        stage.write(chosen, found, tmp_path / "again")
        assert "12/12 items, 0 items/s" in capsys.readouterr().err.splitlines()[-1]
