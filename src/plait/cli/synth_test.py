"""The stage and the verb `synth` with what they draw on: documents, tokens, languages, syntax."""

import json
import shutil
from pathlib import Path

import pytest

from plait.cli.main import app
from plait.cli.run import run_recipe
from plait.cli.synth_stage import sources_of
from plait.core.errors import ConfigError
from plait.core.run_folder import read_manifest
from plait.data.blend import Blend
from plait.data.train_tokenizer import train_tokenizer
from plait.synth.author_test import author
from plait.synth.scripted_test import scripted
from plait.synth.stage import AnySynthSettings

TEXT = "The sum of two even numbers is even because each of them is twice a whole number.\n" * 8


@pytest.fixture
def curated(tmp_path) -> Path:
    for split in ("train", "validation"):
        folder = tmp_path / "curated" / "documents" / split
        folder.mkdir(parents=True)
        for category in ("maths", "web"):
            row = {"text": f"{category}: {TEXT}", "id": f"{category}-1", "metadata": {}}
            (folder / f"{category}.jsonl").write_text(json.dumps(row) + "\n")
    train_tokenizer([TEXT], vocab_size=300).save(tmp_path / "tokenizer")
    return tmp_path / "curated"


def test_a_recipe_writes_and_blends(curated, tmp_path):
    recipe = tmp_path / "mine"
    recipe.mkdir()
    (recipe / "01_dialogues.toml").write_text(
        'stage = "synth"\ngenerator = "dialogue"\ncategory = "maths"\ncategories = ["maths"]\n'
        f'[inputs]\ndocuments = "{curated}"\ntokenizer = "{tmp_path}/tokenizer"\n'
        '[endpoints.default]\nurl = "URL"\nmodel = "m"\n'
    )
    (recipe / "02_blend.toml").write_text(
        'stage = "blend"\n[[phases]]\nuntil = 1.0\nweights = { maths = 1, web = 1 }\n'
        f'[inputs]\ndocuments = ["{curated}", "dialogues"]\ntokenizer = "{tmp_path}/tokenizer"\n'
    )
    with scripted(author) as endpoint:
        for _ in range(2):
            run_recipe(
                recipe, tmp_path / "runs", [f"dialogues.endpoints.default.url={endpoint.url}"], None
            )
        assert len(endpoint.calls) == 1
    runs = tmp_path / "runs" / "mine"
    assert read_manifest(runs / "01_dialogues")["metrics"]["documents"] == 1
    sizes = Blend.read(runs / "02_blend").train
    assert (sizes["maths"].documents, sizes["web"].documents) == (2, 1)


def test_the_verb_reads_rows_and_says_what_is_next(tmp_path, capsys):
    data = tmp_path / "seeds.jsonl"
    data.write_text(json.dumps({"question": "How many even numbers are there up to ten?"}) + "\n")
    out = tmp_path / "out"
    with scripted(author) as endpoint:
        words = ["synth", "stem", "--url", endpoint.url, "--model", "m", "--data", str(data)]
        words += ["--out", str(out), "--set", 'rounds=[["harder"]]', "--set", "validation_share=0"]
        app(words, standalone_mode=False)
    assert "a blend takes the folder among its documents" in capsys.readouterr().out
    [row] = (out / "documents" / "train" / "stem.jsonl").read_text().splitlines()
    assert json.loads(row)["id"] == "seeds.jsonl:1/1harder0"
    assert (out / "conversations.jsonl").exists()
    # The same model at another address, with more patience: what it said still counts.
    with scripted(author) as moved:
        words[words.index("--url") + 1] = moved.url
        app([*words, "--set", "endpoints.default.num_tries=9"], standalone_mode=False)
        assert not moved.calls
    assert (out / "documents" / "train" / "stem.jsonl").read_text().splitlines() == [row]


def test_the_verb_reads_every_folder_of_documents(curated, tmp_path):
    words = ["synth", "dialogue", "--model", "m", "--out", str(tmp_path / "out")]
    for name in "abc":  # whose last parts are the same
        shutil.copytree(curated, folder := tmp_path / name / "curated")
        words += ["--documents", str(folder)]
        for file in folder.rglob("*.jsonl"):
            file.write_text(file.read_text().replace("-1", f"-{name}"))
    with scripted(author) as endpoint:
        app([*words, "--url", endpoint.url], standalone_mode=False)
    assert read_manifest(tmp_path / "out")["metrics"]["documents"] == 3 * 2


def test_sources_know_tokens_languages_and_syntax(curated, tmp_path):
    table = {"generator": "code_qa", "category": "c", "categories": ["web"]}
    endpoints = {"default": {"url": "http://127.0.0.1:1/v1", "model": "m"}}
    settings = AnySynthSettings.parse({**table, "endpoints": endpoints}, "test")
    inputs = {"documents": curated, "tokenizer": tmp_path / "tokenizer"}
    sources = sources_of(settings, inputs, tmp_path / "cache")
    assert [document["id"] for document in sources.documents()] == ["web-1"]
    assert sources.num_tokens(TEXT) < len(TEXT) / 2
    assert sources.language_of("Der Hund und die Katze schlafen auf dem alten Sofa.") == "de"
    assert sources.parses("python", "def f(x):\n    return x") is True
    assert sources.parses("python", "def f(x:\n    return x") is False
    assert sources_of(settings, {}, tmp_path).num_tokens("x" * 10) == 3
    wrong = settings.model_copy(update={"categories": ("wbe",)})
    with pytest.raises(ConfigError, match="no documents of category 'wbe'; did you mean 'web'"):
        next(sources_of(wrong, inputs, tmp_path).documents())
