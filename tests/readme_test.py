"""The README's code runs as written, on the test-sized run of the tiny recipe."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PLAIT = str(Path(sys.executable).with_name("plait"))


def block(language: str) -> str:
    [text] = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return text


@pytest.fixture
def here(run_directory, tmp_path, monkeypatch):
    """A folder in which runs/tiny is the finished run."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(run_directory)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_example_runs(here):
    result = subprocess.run(
        [sys.executable, "-c", block("python")], capture_output=True, text=True, check=True
    )
    assert len(result.stdout.splitlines()) >= 2
    original = here / "runs/tiny/05_sft/model/model.safetensors"
    assert (here / "copy" / "model.safetensors").read_bytes() == original.read_bytes()


def test_the_fine_tuning_example_runs(here, run_directory):
    recipe = here / "recipes" / "mine"
    recipe.mkdir(parents=True)
    (recipe / "01_sft.toml").write_text(block("toml"))
    target = here / "path" / "to" / "a"
    target.mkdir(parents=True)
    shutil.copytree(run_directory / "05_sft" / "model", target / "model")
    lines = (run_directory / "05_sft" / "data" / "train.jsonl").read_text().splitlines()[:20]
    (here / "conversations.jsonl").write_text("\n".join(lines) + "\n")
    subprocess.run([PLAIT, "run", "recipes/mine"], check=True, capture_output=True)
    summary = json.loads((here / "runs" / "mine" / "summary.json").read_text())
    assert summary["sft.samples"] == 20


def test_every_command_line_is_understood():
    commands = re.findall(r"`(?:\.venv/bin/)?plait (\w+)", README)
    assert {"run", "info"} <= set(commands)
    for verb in set(commands):
        subprocess.run([PLAIT, verb, "--help"], check=True, capture_output=True)
    targets = set(re.findall(r"`make ([\w-]+)`", README)) | set(
        re.findall(r"^make (\w+)", README, re.M)
    )
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_every_path_it_names_exists():
    for path in [*re.findall(r"\]\((docs/[^)]+)\)", README), "recipes/tiny", "recipes/nano-12b-v2"]:
        assert (ROOT / path).exists(), path
