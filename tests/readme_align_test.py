"""The README's alignment commands run as written, on a tiny model and small files."""

import json
import random
import re
import shlex
from itertools import count
from pathlib import Path

import pytest

from plait.align.workbench.episode import Episode
from plait.cli.main import app
from plait.core.run_folder import read_manifest
from plait.data.train_tokenizer import train_tokenizer
from plait.grade.score import Score
from plait.model.hf import save
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^plait (?:sft|pairs|dpo|reward|grpo|merge) .*$", README, re.M)
SMALLER = {
    "pairs": ["max_tokens=12"],
    "grpo": ["num_steps=1", "max_tokens=12", "group_size=2", "prompts_per_batch=2"],
    "merge": ["tasks.prompts.max_tokens=12"],
}
"""Less of the same: what a test can wait for."""
SMALL_OFFICE = ["workbench.num_train=4", "workbench.num_test=2", "max_prompt_tokens=1000"]
SMALL_OFFICE += ["workbench.num_distractors=0", "workbench.brief=true"]
"""Declarations of tools are long in a vocabulary that knows no words."""


def write(file: Path, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(words):
    app(words, standalone_mode=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that answers sums with some digit, and files as the README names them."""
    folder = tmp_path_factory.mktemp("user")
    texts = ["Add 1, 2. Answer: 3"] * 9
    train_tokenizer(texts, vocab_size=310).save(folder / "tokenizer")
    spec = ModelSpec.preset("test", vocab_size=310, max_position_embeddings=4096)
    made = init_weights(HybridLM(spec), 0)
    save(made, folder / "untrained", tokenizer_from=folder / "tokenizer")
    rng = random.Random(0)
    asked = [f"Add {n}, {m}." for n in range(9) for m in range(9)]
    talk = [
        {
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": str(rng.randrange(2))},
            ]
        }
        for text in asked
    ]
    write(folder / "talk.jsonl", talk)
    write(
        folder / "prompts.jsonl",
        [{"prompt": t, "verifier": "number", "reference": "1"} for t in asked[:6]],
    )
    write(
        folder / "pairs.jsonl",
        [{"prompt": text, "chosen": "1", "rejected": "0"} for text in asked[:20]],
    )
    for name in ("MODEL", "OTHER"):
        settings = [f"seed={len(name)}", "learning_rate=1e-2", "num_epochs=4", "num_threads=1"]
        words = [word for setting in settings for word in ("--set", setting)]
        out = ["--out", str(folder / name)]
        run(["sft", str(folder / "untrained"), str(folder / "talk.jsonl"), *out, *words])
    return folder


def test_the_readme_shows_every_verb():
    verbs = [command.split()[1] for command in COMMANDS]
    assert set(verbs) == {"sft", "pairs", "dpo", "reward", "grpo", "merge"}


def test_commands_run_as_written_one_after_another(folder, monkeypatch):
    monkeypatch.chdir(folder)
    # A tiny model does nothing in an office: who succeeds is drawn.
    outcomes = count()
    monkeypatch.setattr(Episode, "score", lambda _: Score(next(outcomes) % 2, "drawn"))
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        smaller = list(SMALLER.get(words[0], []))
        if "workbench" in command:
            prefix = "rounds." if words[0] == "dpo" else ""
            smaller += [prefix + setting for setting in SMALL_OFFICE]
        if "rounds.workbench" in command:
            smaller += ["rounds.group_size=2", "rounds.max_tokens=48"]
        settings = [w for s in (*smaller, "num_threads=1") for w in ("--set", s)]
        run([*words, *settings])
        out = Path(words[words.index("--out") + 1])
        assert read_manifest(out)["metrics"], command
        product = "pairs.jsonl" if words[0] == "pairs" else "model/model.safetensors"
        assert (out / product).is_file(), command
