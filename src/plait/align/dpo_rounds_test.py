"""Rounds of own pairs: what they report, that a stopped run goes on, that no pairs are said."""

import json
from hashlib import sha256

import pytest

from plait.align import dpo_rounds, dpo_stage, pairs_stage
from plait.align.dpo_stage import DpoSettings, run
from plait.align.verify import Outcome


def settings(tmp_path):
    for name, first in (("train", 0), ("test", 50)):
        asked = {"verifier": "number", "reference": "1"}
        rows = [{"prompt": f"Add {n}.", **asked} for n in range(first, first + 4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    rounds = {
        "files": [str(tmp_path / "train.jsonl")],
        "test_files": [str(tmp_path / "test.jsonl")],
        "group_size": 4,
        "max_tokens": 6,
        "thinking_share": 0.0,
    }
    table = {"rounds": rounds, "learning_rate": 1e-3, "num_threads": 1, "tokens_per_batch": 400}
    return DpoSettings.parse(table, "recipe")


def by_ids(inputs, pool):
    """Instead of verifiers: a reward that an untrained model varies."""
    return lambda prompt, completion: lambda: Outcome(float(sum(completion.token_ids) % 7), "")


@pytest.fixture
def whole_answers(monkeypatch):
    """An untrained model never ends a turn, and what is cut off is never chosen."""
    make = pairs_stage.pairs_of_group

    def ended(prompt, group, most):
        return make(prompt, [rollout._replace(finish_reason="stop") for rollout in group], most)

    monkeypatch.setattr(pairs_stage, "pairs_of_group", ended)
    for module in (pairs_stage, dpo_rounds):
        monkeypatch.setattr(module, "judge_of", by_ids)


def digests(out):
    names = ("round_1/model/model.safetensors", "pairs_2/pairs.jsonl", "model/model.safetensors")
    return [sha256((out / name).read_bytes()).hexdigest() for name in names]


def test_a_run_killed_in_its_second_round_resumes_to_the_same_models(
    base_model, tmp_path, monkeypatch, whole_answers
):
    chosen, inputs = settings(tmp_path), {"model": base_model}
    metrics = run(chosen, inputs, tmp_path / "whole")
    for number in (0, 1, 2):
        assert f"held_out.reward.no_think.round_{number}" in metrics
    assert metrics["round_1.pairs"] >= 1
    assert metrics["round_2.pairs"] >= 1
    assert digests(tmp_path / "whole")[0] != digests(tmp_path / "whole")[2]

    class Crash(BaseException):
        pass

    learn, calls = dpo_stage.learn_pairs, iter(range(100))

    def dying(*arguments):
        if next(calls) == 1:
            raise Crash
        return learn(*arguments)

    monkeypatch.setattr(dpo_stage, "learn_pairs", dying)
    with pytest.raises(Crash):
        run(chosen, inputs, tmp_path / "killed")
    again = run(chosen, inputs, tmp_path / "killed")
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert next(calls) == 3  # the first round was not learnt again
    for name, value in metrics.items():
        if "tokens_per_s" not in name:
            assert again[name] == value, name


def test_rounds_without_better_and_worse_answers_keep_the_model(base_model, tmp_path, caplog):
    """An untrained model is always wrong."""
    metrics = run(settings(tmp_path), {"model": base_model}, tmp_path / "out")
    assert (metrics["round_1.pairs"], metrics["round_2.pairs"]) == (0, 0)
    assert metrics["held_out.reward.no_think.round_2"] == 0
    assert "none of 4 prompts has a better and a worse answer" in caplog.text
    kept = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    assert kept == (base_model / "model.safetensors").read_bytes()
