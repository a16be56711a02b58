"""Every verb that runs one stage alone, on a tiny model and files as a user has them."""

import json
from pathlib import Path

import pytest
import torch

from plait.cli.main import app
from plait.core.errors import ConfigError, DataError
from plait.core.run_folder import read_manifest
from plait.data.train_tokenizer import train_tokenizer
from plait.model.hf import load, save
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec

TEXTS = ["Cards: A1, B2. Add A, B. Last digit? </think>\n\n"] * 9


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    train_tokenizer(TEXTS, vocab_size=310).save(folder / "tokenizer")
    made = init_weights(HybridLM(ModelSpec.preset("test", vocab_size=310)), 0)
    save(made, folder / "model", tokenizer_from=folder / "tokenizer")
    return folder / "model"


def write(file: Path, *rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def plait(*words):
    app([str(word) for word in words], standalone_mode=False)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def moved(before, after):
    pairs = zip(load(before).parameters(), load(after).parameters(), strict=True)
    return any(not torch.equal(a, b) for a, b in pairs)


QUICK = ("--set", "learning_rate=1e-3", "--set", "num_threads=1")


def test_sft(model, tmp_path):
    rows = [{"messages": [user("Hi"), assistant("Hello")]}, {"messages": [user("Hi")]}]
    data = write(tmp_path / "talk.jsonl", *rows)
    out = tmp_path / "out"
    plait("sft", model, data, "--out", out, *QUICK, "--set", "lora.rank=2")
    metrics = read_manifest(out)["metrics"]
    assert (metrics["samples"], metrics["rows_refused"], metrics["steps"]) == (1, 1, 1)
    assert moved(model, out / "model")
    with pytest.raises(DataError, match=r"talk\.jsonl, line 2: no assistant turn"):
        plait("sft", model, data, "--out", tmp_path / "strict", "--strict")


@pytest.mark.parametrize("verb", ["dpo", "reward"])
def test_preferences(model, tmp_path, verb):
    rows = [
        {"prompt": f"Add {n}.", "chosen": f"Answer: {n}", "rejected": "no"} for n in range(8)
    ] + [{"prompt": "Same", "chosen": "x", "rejected": "x"}]
    data = write(tmp_path / "pairs.jsonl", *rows)
    out = tmp_path / "out"
    plait(verb, model, data, "--out", out, *QUICK, "--set", "num_epochs=4")
    metrics = read_manifest(out)["metrics"]
    assert metrics["rows_refused"] == 1
    assert metrics["loss"] < 0.6931
    assert moved(model, out / "model")
    assert (out / "model" / "score.safetensors").exists() == (verb == "reward")


def test_grpo_by_a_verifier_and_by_a_reward_model(model, tmp_path):
    asked = {"verifier": "number", "reference": "3"}
    rows = [{"prompt": "Add 1, 2.", **asked}, {"prompt": [user("Largest of 3, 1?")], **asked}]
    data = write(tmp_path / "prompts.jsonl", *rows, {"prompt": "Say hi.", "verifier": "mood"})
    out = tmp_path / "out"
    small = ["num_steps=2", "group_size=2", "prompts_per_batch=2", "max_tokens=6"]
    options = [word for key in small for word in ("--set", key)]
    plait("grpo", model, data, "--out", out, *QUICK, *options)
    metrics = read_manifest(out)["metrics"]
    assert metrics["rows_refused"] == 1
    assert 0 < metrics["max_logprob_gap"] < 1e-4
    assert len(list((out / "rollouts").iterdir())) == 2

    pairs = [{"prompt": f"{n}?", "chosen": f"{n}", "rejected": "no"} for n in range(4)]
    judge = tmp_path / "judge"
    plait("reward", model, write(tmp_path / "pairs.jsonl", *pairs), "--out", judge, *QUICK)
    plait("grpo", model, data, "--out", tmp_path / "rl", "--reward-model", judge, *QUICK, *options)
    assert read_manifest(tmp_path / "rl")["metrics"]["rows_refused"] == 0
    assert moved(model, tmp_path / "rl" / "model")


def test_pairs(model, tmp_path):
    rows = [{"prompt": f"Add {n}.", "verifier": "number", "reference": f"{n}"} for n in range(3)]
    data = write(tmp_path / "prompts.jsonl", *rows)
    options = ("--set", "max_tokens=4", "--set", "group_size=2", "--set", "num_threads=1")
    # An untrained model is always wrong, and says so.
    with pytest.raises(DataError, match="none of 3 prompts has a better and a worse answer"):
        plait("pairs", model, data, "--out", tmp_path / "out", *options)
    # A reward model prefers something.
    judge = tmp_path / "judge"
    talk = [{"prompt": f"{n}?", "chosen": f"{n}", "rejected": "no"} for n in range(4)]
    plait("reward", model, write(tmp_path / "pairs.jsonl", *talk), "--out", judge, *QUICK)
    with pytest.raises(DataError, match=r"\(6 of 6 answers were cut off"):
        plait("pairs", model, data, "--out", tmp_path / "rm", "--reward-model", judge, *options)
    lines = (tmp_path / "rm" / "rollouts.jsonl").read_text().splitlines()
    rewards = {json.loads(line)["reward"] for line in lines}
    assert len(rewards) > 1


def test_merge(model, tmp_path):
    other = tmp_path / "other"
    save(
        init_weights(HybridLM(ModelSpec.preset("test", vocab_size=310)), 1),
        other,
        tokenizer_from=model,
    )
    plait("merge", model, other, "--out", tmp_path / "out")
    half = load(tmp_path / "out" / "model").lm_head.weight
    a, b = load(model).lm_head.weight, load(other).lm_head.weight
    torch.testing.assert_close(half, (a + b) / 2)
    asked = {"verifier": "number", "reference": "3"}
    rows = [{"prompt": f"Add {n}, 2.", **asked} for n in range(6)]
    data = write(tmp_path / "prompts.jsonl", *rows)
    options = ("--data", data, "--set", "alphas=[0.25, 0.5]", "--set", "tasks.prompts.max_tokens=4")
    plait("merge", model, other, "--out", tmp_path / "sweep", *options)
    curve = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [point["alpha"] for point in curve["points"]] == [0.0, 0.25, 0.5, 1.0]
    assert read_manifest(tmp_path / "sweep")["metrics"]["alpha"] == 0.5
    one = ("--data", write(tmp_path / "one.jsonl", rows[0]))
    with pytest.raises(DataError, match=r"tasks\.prompts: 1 prompts are too few"):
        plait("merge", model, other, "--out", tmp_path / "few", *one)


def test_a_finished_verb_is_skipped_and_a_foreign_folder_refused(model, tmp_path, capsys):
    data = write(tmp_path / "talk.jsonl", {"messages": [user("Hi"), assistant("Hello")]})
    out = tmp_path / "out"
    for _ in range(2):
        plait("sft", model, data, "--out", out, *QUICK)
    assert "finished before, unchanged" in capsys.readouterr().out
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="holds something else"):
        plait("sft", model, data, "--out", foreign)
    with pytest.raises(ConfigError, match=r"unknown key 'bta'; did you mean 'beta'"):
        plait("dpo", model, data, "--out", tmp_path / "no", "--set", "bta=1")
    with pytest.raises(ConfigError, match="does not exist"):
        plait("sft", model, tmp_path / "none.jsonl", "--out", tmp_path / "no")
