"""What docs/data.md tells a user to do works as written."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from plait.cli.main import app
from plait.cli.run import run_recipe
from plait.core.run_folder import read_manifest
from plait.data.blend import Blend
from plait.data.curate_settings import CurateSettings
from plait.data.train_tokenizer import train_tokenizer
from plait.synth.author_test import author
from plait.synth.scripted_test import scripted
from plait.synth.stage import GENERATORS

TEXT = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
SENTENCE = "The sum of two even numbers is even because each is twice a whole number. "


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def curated(tmp_path, monkeypatch) -> Path:
    """A folder in which runs/mine/01_curate holds documents."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs/mine/01_curate"
    for split in ("train", "validation"):
        (folder / "documents" / split).mkdir(parents=True)
        row = {"text": SENTENCE * 20, "id": "1", "metadata": {}}
        (folder / "documents" / split / "crawl-high.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "seeds.jsonl").write_text('{"question": "How many even numbers are primes?"}\n')
    return folder


def test_commands_and_stages_run_as_written(curated, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    train_tokenizer([SENTENCE], vocab_size=300).save(tmp_path / "tokenizer")
    recipe = tmp_path / "recipes" / "mine"
    recipe.mkdir(parents=True)
    with scripted(author) as endpoint:
        [commands] = blocks("console")
        for command in re.split(r"\n(?=plait)", commands.replace("\\\n", " ")):
            words = shlex.split(
                command.replace("--url ...", "--url U").replace("model ...", "model m")
            )
            words[words.index("--url") + 1] = endpoint.url
            app(words[1:], standalone_mode=False)
        _, *stages = blocks("toml")
        for block in stages:
            name = re.findall(r"recipes/mine/(\S+)", block)[0]
            paths = {"curate": curated, "tokenizer": tmp_path / "tokenizer"}
            for key, path in paths.items():
                block = block.replace(f'"{key}"', f'"{path}"')
            (recipe / name).write_text(block)
        run_recipe(recipe, tmp_path / "again", [f"qa.endpoints.default.url={endpoint.url}"], None)
    assert read_manifest(tmp_path / "out" / "qa")["metrics"]["documents"] > 0
    sizes = Blend.read(tmp_path / "again" / "mine" / "04_blend").train
    assert set(sizes) == {"crawl-high", "crawl-high-synthetic", "stem"}


def test_the_curation_is_understood():
    table = tomllib.loads(blocks("toml")[0])
    assert table.pop("stage") == "curate"
    assert CurateSettings.parse(table, "docs/data.md").categories["english"].warc


def test_every_generator_is_described():
    named = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert sorted(named) == sorted(GENERATORS)
