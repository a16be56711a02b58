"""Curation with scores, tiers and benchmarks, end to end on a made crawl."""

import json
import shutil

import pytest

from plait.core.errors import ConfigError, DataError
from plait.data.curate import run
from plait.data.curate_settings import CurateSettings
from plait.data.curate_test import prose, write_crawl
from plait.data.documents import document_files, read_documents
from plait.data.student import Features, train

HTML = [("Content-Type", "text/html")]
QUESTION = (
    "A gardener plants nine rows of eleven tulips each and then gives away every third bulb of the "
    "first four rows; how many tulips does the gardener still have in the end?"
)


def graded(grade, seed):
    """Write prose that names its grade often enough to be learnt."""
    lines = prose("en", seed, num_words=150).split("\n")
    return "\n".join(
        f"{line} {' '.join(['proof'] * grade + ['bargain'] * (5 - grade))}" for line in lines
    )


def body(text):
    lines = "".join(f"<p>{line}</p>" for line in text.split("\n"))
    return f"<html><body><main>{lines}</main></body></html>".encode()


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graded")
    pages = [
        (f"{grade}/{i}", graded(grade, 100 * grade + i)) for i in range(8) for grade in range(6)
    ]
    pages[5] = ("leak", f"{pages[5][1]}\n{QUESTION}\n{prose('en', 999)}")
    half = len(pages) // 2
    for name, part in (("first", pages[:half]), ("second", pages[half:])):
        write_crawl(
            folder / f"{name}.warc.gz", [(url, body(text), HTML, "200 OK") for url, text in part]
        )
    texts = [graded(grade, 5000 + 100 * grade + i) for i in range(12) for grade in range(6)]
    scores = [float(grade) for _ in range(12) for grade in range(6)]
    train(texts, {"educational": scores}, Features("words")).write(folder / "student")
    (folder / "set.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n")
    return folder


def settings(crawl, **changes):
    category = {
        "warc": [{"paths": [f"{crawl}/*.warc.gz"]}],
        "extractor": "resiliparse",
        "languages": ["en"],
        "url_lists": False,
        "prose": {"max_top_ngram": {}, "max_repeated_ngrams": {}},
        "scores": [{"name": "educational"}],
        "tiers": {
            "by": ["educational"],
            "num_buckets": 6,
            "buckets": {"medium": 1, "medium-high": 3, "high": 5},
        },
    }
    table = {
        "categories": {"crawl": category | changes.pop("category", {})},
        "decontaminate": {"benchmarks": [{"name": "set", "paths": [f"{crawl}/set.jsonl"]}]},
        "validation_share": 0.1,
        "workers": 1,
        **changes,
    }
    return CurateSettings.parse(table, "test")


def documents(out, split):
    files = document_files([out], split)
    return {name: list(read_documents(found)) for name, found in files.items()}


@pytest.fixture(scope="module")
def curated(crawl, tmp_path_factory):
    out = tmp_path_factory.mktemp("curated")
    return out, run(settings(crawl), {"student": crawl / "student"}, out)


def test_a_pool_is_cut_into_the_categories_of_its_tiers(curated):
    out, metrics = curated
    table = json.loads((out / "funnel.json").read_text())["categories"]["crawl"]
    assert table["dropped"].keys() == {"benchmark_words", "low_quality"}
    assert [row["step"] for row in table["steps"]][-4:] == [
        "near",
        "decontaminate",
        "educational",
        "tiers",
    ]
    assert table["documents_in"] == table["documents_kept"] + table["documents_dropped"] == 48
    assert table["dropped"]["benchmark_words"] == 1
    assert table["tiers"].keys() == {"medium", "medium-high", "high"}
    assert sum(size["documents"] for size in table["tiers"].values()) == table["documents_kept"]
    assert sum(table["labels"]["educational"].values()) == table["documents_kept"]
    assert metrics["kept.crawl"] == table["documents_kept"]
    assert metrics["kept.high"] == table["tiers"]["high"]["documents"]
    total = sum(size["bytes"] for size in table["tiers"].values())
    shares = {name: size["bytes"] / total for name, size in table["tiers"].items()}
    # Of six parts the lowest is dropped: two, two and one of five are left.
    for name, share in (("medium", 0.4), ("medium-high", 0.4), ("high", 0.2)):
        assert shares[name] == pytest.approx(share, abs=0.06)


def test_documents_lie_in_their_tier_with_scores_and_pool(curated):
    out, _ = curated
    train_files, held_out = documents(out, "train"), documents(out, "validation")
    assert list(train_files) == list(held_out) == ["high", "medium", "medium-high"]
    bounds = {}
    for name, found in train_files.items():
        for document in found:
            metadata = document["metadata"]
            assert (metadata["pool"], metadata["category"]) == ("crawl", name)
        scores = [d["metadata"]["educational"] for d in [*found, *held_out[name]]]
        bounds[name] = min(scores), max(scores)
    assert bounds["medium"][1] <= bounds["medium-high"][0]
    assert bounds["medium-high"][1] <= bounds["high"][0]
    grades = [d["metadata"]["url"].split("/")[3] for d in train_files["high"]]
    assert set(grades) <= {"4", "5"}


def test_what_was_taken_out_for_a_benchmark_is_reported(curated):
    out, _ = curated
    found = json.loads((out / "contamination.json").read_text())
    assert found["benchmarks"]["set"] == {
        "questions": 1,
        "questions_found": 1,
        "documents": {"benchmark_words": 1},
    }
    [row] = found["removed"]
    assert row["url"] == "https://example.org/leak"
    assert (row["benchmark"], row["item"], row["question"]) == ("set", "set.jsonl:1", QUESTION)
    page = (out / "report.html").read_text()
    assert "Benchmarks kept out" in page
    assert "questions in other words were not looked for" in page
    assert "→ medium-high" in page


def test_a_finished_run_is_left_alone_and_another_student_starts_anew(curated, crawl, tmp_path):
    out, metrics = curated
    before = {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if "benchmarks-" not in str(path)
    }
    assert run(settings(crawl), {"student": crawl / "student"}, out) == metrics
    assert {path: path.stat().st_mtime_ns for path in before} == before
    texts = [graded(grade, 100 * grade) for grade in range(6)] * 3
    train(texts, {"educational": [5.0, 4.0, 3.0, 2.0, 1.0, 0.0] * 3}, Features("words")).write(
        tmp_path / "student"
    )
    other = tmp_path / "out"
    shutil.copytree(out, other)
    run(settings(crawl), {"student": tmp_path / "student"}, other)
    grades = [d["metadata"]["url"].split("/")[3] for d in documents(other, "train")["high"]]
    assert set(grades) <= {"0", "1"}


def test_maths_like_subsets_by_scores_of_a_model(crawl, tmp_path):
    """Every fifth answer is garbage: those documents are dropped, each on record."""

    def ask(prompts):
        grades = [min(5, prompt.count("proof") // 10) for prompt in prompts]
        return [f"Label: {grade}" if i % 5 else "no idea" for i, grade in enumerate(grades)]

    category = {
        "scores": [{"name": "maths", "by": "endpoint"}],
        "tiers": {"by": ["maths"], "scores": {"maths-3": 2.5, "maths-4": 3.5}},
    }
    endpoints = {"label": {"url": "http://127.0.0.1:1/v1", "model": "m"}}
    chosen = settings(crawl, category=category, endpoints=endpoints, decontaminate=None)
    metrics = run(chosen, {}, tmp_path, {"label": ask})
    table = json.loads((tmp_path / "funnel.json").read_text())["categories"]["crawl"]
    assert table["dropped"]["not_labelled"] == 10
    assert metrics["kept.maths-3"] + metrics["kept.maths-4"] == metrics["kept.crawl"] > 0
    for name, found in documents(tmp_path, "train").items():
        least = {"maths-3": 3, "maths-4": 4}[name]
        assert all(least <= d["metadata"]["maths"] <= least + (name == "maths-4") for d in found)


def test_what_is_missing_stops_before_any_work(crawl, tmp_path):
    with pytest.raises(ConfigError, match=r"'educational': by = \"student\" needs the stage"):
        run(settings(crawl), {}, tmp_path / "a")
    absent = {"scores": [{"name": "educational", "by": str(tmp_path / "none")}]}
    with pytest.raises(ConfigError, match=r"scores 'educational': .*none holds no config\.json"):
        run(settings(crawl, category=absent), {}, tmp_path / "a")
    wrong = {"benchmarks": [{"name": "set", "paths": [f"{crawl}/set.jsonl"], "fields": ["stem"]}]}
    with pytest.raises(DataError, match="no text in stem; it has question"):
        run(settings(crawl, decontaminate=wrong), {"student": crawl / "student"}, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ConfigError, match=r"scores: needs a table endpoints\.label"):
        settings(crawl, category={"scores": [{"name": "maths", "by": "endpoint"}], "tiers": None})
