import io
import itertools
import json
import random
import subprocess
import sys
import textwrap
from collections import Counter

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from plait.core.errors import CapacityError, ConfigError, DataError
from plait.data.curate import run
from plait.data.curate_settings import CurateSettings
from plait.data.documents import document_files, read_documents
from plait.data.executors import LocalTasks
from plait.data.funnel import Funnel

WORDS = {
    "en": (
        "the water and mountain of a river with under morning people that between house light "
        "every other small garden stone winter walk bring carry always never perhaps summer which "
        "they have when there would their about think"
    ),
    "de": (
        "der die das und nicht Wasser Gebirge eines Flusses unter morgens Menschen zwischen Haus "
        "Licht jeder andere kleiner Garten Stein Winter gehen bringen tragen immer niemals "
        "vielleicht Sommer welche sie haben wenn würde über denken größer schön"
    ),
    "fi": (
        "ja vesi vuori joki alla aamulla ihmiset välissä talo valo jokainen toinen pieni puutarha "
        "kivi talvi kävellä tuoda kantaa aina koskaan ehkä kesä jotka heillä kun olisi yli ajatella"
    ),
}
HTML = [("Content-Type", "text/html")]


def prose(language, seed, num_words=120):
    words = random.Random(f"{language}{seed}").choices(WORDS[language].split(), k=num_words)
    lines = [" ".join(words[i : i + 15]).capitalize() + "." for i in range(0, num_words, 15)]
    return "\n".join(lines)


def page(text):
    body = "".join(f"<p>{line}</p>" for line in text.split("\n"))
    return f"<html><head><title>x</title></head><body><main>{body}</main></body></html>"


def write_crawl(path, pages):
    """Write (url, body, headers, status) as response records with fixed ids and dates."""
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for number, (url, body, headers, status) in enumerate(pages):
            http = StatusAndHeaders(status, headers, protocol="HTTP/1.1")
            record = writer.create_warc_record(
                f"https://example.org/{url}",
                "response",
                payload=io.BytesIO(body),
                length=len(body),
                http_headers=http,
                warc_headers_dict={
                    "WARC-Record-ID": f"<urn:uuid:{path.stem}-{number}>",
                    "WARC-Date": "2026-01-01T00:00:00Z",
                },
            )
            writer.write_record(record)


def crawl(folder):
    """Write three shards of web pages with every fault that a page can have."""

    def good(url, text, encoding="utf-8", headers=HTML, status="200 OK"):
        return url, page(text).encode(encoding), headers, status

    def edited(text):
        return text.replace("\n", "\nToday: ", 1)

    latin = [("Content-Type", "text/html; charset=iso-8859-1")]
    first = [good(f"en/{i}", prose("en", i)) for i in range(30)]
    first += [
        good("gone", prose("en", 100), status="404 Not Found"),
        good("moved", prose("en", 101), status="301 Moved Permanently"),
        ("logo", b"\x89PNG....", [("Content-Type", "image/png")], "200 OK"),
        ("noise", bytes(range(256)) * 9, HTML, "200 OK"),
        ("zipped", b"no gzip", [*HTML, ("Content-Encoding", "gzip")], "200 OK"),
        ("menu", b"<html><nav><a href=x>Home</a></nav></html>", HTML, "200 OK"),
        good("short", prose("en", 102, num_words=30)),
        good("fi", prose("fi", 0)),
    ]
    second = [good(f"de/{i}", prose("de", i)) for i in range(8)]
    second += [
        good("de/latin", prose("de", 50), "latin-1", latin),
        good("de/called-latin", prose("de", 51), headers=latin),
        good(
            "de/called-utf8",
            prose("de", 52),
            "latin-1",
            [("Content-Type", HTML[0][1] + ";charset=utf-8")],
        ),
        good("copy/en/3", prose("en", 3).upper()),
        *(good(f"near/en/{i}", edited(prose("en", i))) for i in range(10, 16)),
    ]
    third = [good(f"late/{i}", prose("en", 200 + i)) for i in range(4)]
    for name, pages in (("first", first), ("second", second), ("third", third)):
        write_crawl(folder / f"{name}.warc.gz", pages)
    whole = (folder / "third.warc.gz").read_bytes()
    (folder / "third.warc.gz").write_bytes(whole[:-40])


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crawl")
    crawl(folder)
    return folder


def settings(pages, **changes):
    table = {
        "categories": {
            "web": {
                "warc": [{"paths": [f"{pages}/*.warc.gz"], "licence": "CC0-1.0"}],
                "extractor": "resiliparse",
                "languages": ["en", "de"],
                "url_lists": False,
            }
        },
        "dedup": {"ngram_characters": 12, "num_bands": 8, "hashes_per_band": 5},
        "validation_share": 0.2,
        "workers": 1,
        **changes,
    }
    return CurateSettings.parse(table, "test")


@pytest.fixture(scope="module")
def curated(pages, tmp_path_factory):
    out = tmp_path_factory.mktemp("curated")
    return out, run(settings(pages, keep_dropped=True), {}, out)


def product(out):
    return {
        str(path.relative_to(out)): path.read_bytes()
        for name in ("documents", "dropped", "funnel.json")
        for path in ([out / name] if (out / name).is_file() else sorted((out / name).rglob("*")))
        if path.is_file()
    }


def documents(out, split):
    return list(read_documents(document_files([out], split)["web"]))


def test_every_page_is_accounted_for(curated):
    out, metrics = curated
    table = json.loads((out / "funnel.json").read_text())["categories"]["web"]
    assert table["dropped"] == {
        "near_duplicate": 6,
        "not_ok_status": 2,
        "not_text": 1,
        "undecodable": 1,
        "broken_encoding": 1,
        "truncated_record": 1,
        "no_text": 1,
        "unlisted_language": 1,
        "gopher_short_doc": 1,
        "exact_duplicate": 1,
    }
    assert table["documents_in"] == 30 + 8 + 8 + 3 + 1 + 6 + 4
    assert table["documents_kept"] == table["documents_in"] - 16
    languages = table["languages"].values()
    assert [row["documents"] for row in languages if row["documents"]] == [33, 11]
    lost = Counter(reason for row in languages for reason in row["dropped"])
    assert lost.keys() == table["dropped"].keys()
    assert table["languages"]["unknown"]["dropped"]["no_text"] == 1
    assert [row["step"] for row in table["steps"]] == [
        *("read", "extract", "language", "heuristics", "exact", "near")
    ]
    left = [table["documents_in"], *(row["documents"] for row in table["steps"])]
    lost = [sum(d["documents"] for d in row["dropped"].values()) for row in table["steps"]]
    assert [before - after for before, after in itertools.pairwise(left)] == lost
    assert table["steps"][-1]["bytes"] == table["bytes"]
    assert metrics["documents_in"] == table["documents_in"]
    assert metrics["documents_kept"] == metrics["kept.web"] == 44
    texts = [doc["text"] for split in ("train", "validation") for doc in documents(out, split)]
    assert metrics["characters"] == metrics["characters.web"] == sum(map(len, texts))


def test_documents_carry_text_and_origin(curated):
    out, _ = curated
    kept = {
        doc["metadata"]["url"]: doc
        for split in ("train", "validation")
        for doc in documents(out, split)
    }
    plain = kept["https://example.org/en/7"]
    assert plain["text"].replace("\n\n", "\n") == prose("en", 7)
    assert plain["metadata"]["category"] == "web"
    assert plain["metadata"]["licence"] == "CC0-1.0"
    assert plain["metadata"]["language"] == "en"
    assert plain["metadata"]["source"].endswith("first.warc.gz")
    for name, seed in (("latin", 50), ("called-latin", 51), ("called-utf8", 52)):
        assert kept[f"https://example.org/de/{name}"]["text"].replace("\n\n", "\n") == prose(
            "de", seed
        )
    assert sum(url.startswith("https://example.org/late/") for url in kept) == 3


def test_the_split_is_disjoint_and_of_the_right_size(curated):
    out, _ = curated
    train = {doc["id"] for doc in documents(out, "train")}
    validation = {doc["id"] for doc in documents(out, "validation")}
    assert not train & validation
    assert len(train | validation) == 44
    assert 3 <= len(validation) <= 15


def test_dropped_documents_are_kept_with_their_reason_if_asked(curated):
    out, _ = curated
    dropped = [json.loads(line) for line in (out / "dropped/web.jsonl").read_text().splitlines()]
    by_url = {doc["url"].removeprefix("https://example.org/"): doc for doc in dropped}
    assert by_url["fi"]["reason"] == "unlisted_language"
    assert by_url["fi"]["text"].replace("\n\n", "\n") == prose("fi", 0)
    assert by_url["gone"]["reason"] == "not_ok_status"


def test_a_finished_run_is_left_alone(curated, pages):
    out, metrics = curated
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run(settings(pages, keep_dropped=True), {}, out) == metrics
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_the_terminal_is_left_alone_and_other_settings_start_anew(pages, tmp_path, capfd):
    small = {**settings(pages).model_dump(), "keep_dropped": False}
    small["categories"]["web"]["warc"][0]["paths"] = [f"{pages}/second.warc.gz"]
    first = run(CurateSettings.parse(small, "test"), {}, tmp_path)
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""
    assert not (tmp_path / "dropped").exists()
    assert not (tmp_path / "cache/work").exists()
    assert "Launching pipeline" in (tmp_path / "logs/clean/logs/task_00000.log").read_text()
    small["categories"]["web"]["languages"] = ["de"]
    second = run(CurateSettings.parse(small, "test"), {}, tmp_path)
    assert (first["documents_kept"], second["documents_kept"]) == (18, 11)


def test_two_workers_give_the_same_bytes(curated, pages, tmp_path):
    run(settings(pages, keep_dropped=True, workers=2), {}, tmp_path)
    ours, theirs = product(tmp_path), product(curated[0])
    ours.pop("funnel.json"), theirs.pop("funnel.json")
    assert ours == theirs


KILLED = """
    import os, pathlib, signal, sys
    from plait.data import curate, curate_io, executors
    from plait.data.curate_settings import CurateSettings
    from plait.data.curate_test import settings
    from plait.data.language import identify

    def kill_after(owner, name, calls):
        real, left = getattr(owner, name), [calls]
        def counting(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        setattr(owner, name, counting)

    identify("Load the model once, before the forks.")
    pages, out = sys.argv[1], pathlib.Path(sys.argv[2])
    chosen = settings(pages, keep_dropped=True)
    points = [
        (curate_io.DropWriter, "_write", 7), (curate_io.PassWriter, "_write", 20),
        (curate_io.PassWriter, "_write", 60), (executors, "_run_task", 2),
        (executors, "_run_task", 7), (curate, "write_json", 0),
        (curate.shutil, "rmtree", 0),
    ]
    for point in points:
        child = os.fork()
        if child == 0:
            kill_after(*point)
            curate.run(chosen, {}, out)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, point
    curate.run(chosen, {}, out)
"""


def test_killed_at_any_point_the_same_command_ends_in_the_same_bytes(curated, pages, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(pages), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert product(tmp_path) == product(curated[0])


def japanese(pages, **changes):
    category = settings(pages).model_dump()["categories"]["web"]
    paths = [f"{pages}/third.warc.gz"]
    return {**category, "warc": [{"paths": paths}], "languages": ["ja"], **changes}


def test_an_empty_corpus_is_one_clear_error(pages, tmp_path):
    table = {"categories": {"web": japanese(pages)}, "workers": 1}
    message = (
        "category 'web' is empty: all of its 4 pages were dropped: 3 other_language, "
        "1 truncated_record; add sources or widen its rules and languages"
    )
    with pytest.raises(DataError, match=message):
        run(CurateSettings.parse(table, "test"), {}, tmp_path)


def test_an_optional_category_is_left_out_with_a_warning(pages, tmp_path, caplog):
    english = japanese(pages, languages=["en"])
    categories = {"web": english, "ja": japanese(pages, required=False)}
    table = {"categories": categories, "workers": 1}
    metrics = run(CurateSettings.parse(table, "test"), {}, tmp_path)
    assert (metrics["kept.web"], metrics["kept.ja"]) == (3, 0)
    assert list(document_files([tmp_path], "train")) == ["web"]
    assert list(document_files([tmp_path], "validation")) == ["web"]
    assert "category 'ja' is empty" in caplog.text


def test_a_missing_file_is_refused_before_work_starts(tmp_path):
    with pytest.raises(ConfigError, match=r"categories\.web: no file matches"):
        run(settings(tmp_path), {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_lost_document_is_noticed():
    def drop(step):
        lost = {"category": "web", "language": None, "step": step, "reason": "no_text", "bytes": 7}
        funnel.add_dropped(lost)

    counts = {"in/documents": 3, "in/bytes": 30, "read/documents": 2, "read/bytes": 20}
    counts |= {"late/documents": 1, "late/bytes": 12}
    funnel = Funnel({"web": ["read", "late"]}, {f"web/{name}": n for name, n in counts.items()})
    drop("read")
    metadata = {"category": "web", "language": "en", "source": "crawl", "licence": None}
    funnel.add_kept({"text": "twelve bytes", "metadata": metadata}, is_validation=False)
    with pytest.raises(DataError, match="3 pages went in, but 1 kept and 1 dropped came out"):
        funnel.table()
    drop("read")
    with pytest.raises(DataError, match="2 documents came out of 'read', but 1 are accounted"):
        funnel.table()
    funnel.dropped["web"].clear()
    drop("read")
    drop("late")
    assert funnel.table()["web"]["dropped"] == {"no_text": 2}
    funnel.kept["web"]["bytes"] += 1
    with pytest.raises(DataError, match="12 bytes came through, but 13 were written"):
        funnel.table()


def test_a_dead_worker_is_reported(tmp_path):
    from concurrent.futures import Executor, Future
    from concurrent.futures.process import BrokenProcessPool

    class Dying(Executor):
        def submit(self, *args):
            future = Future()
            future.set_exception(BrokenProcessPool())
            return future

    with pytest.raises(CapacityError, match=r"clean: a worker process died.* fewer workers"):
        LocalTasks(tmp_path, Dying()).run("clean", [], 2)
