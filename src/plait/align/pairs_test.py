import json

import pytest

from plait.align import dpo_stage, pairs_stage
from plait.align.dpo_stage import DpoSettings
from plait.align.pairs_stage import PairsSettings, pairs_of_group
from plait.align.rollout import Prompt, Rollout
from plait.align.verify import Outcome
from plait.core.errors import DataError

PROMPT = Prompt("q", [{"role": "user", "content": "Q"}], None, "number", "1")


def answer(reward, content, *, finish_reason="stop", reasoning=None):
    ids = list(range(len(content)))
    zeros = [0.0] * len(ids)
    turn = {"role": "assistant", "content": content}
    traced = {} if reasoning is None else {"reasoning_content": reasoning}
    return Rollout(
        "q",
        False,
        [1],
        ids,
        zeros,
        [False] * len(ids),
        [turn | traced],
        finish_reason,
        reward,
        "",
    )


def test_best_against_worst_of_a_group():
    group = [answer(0.5, "mid"), answer(1.0, "long best"), answer(1.0, "best"), answer(0.0, "bad")]
    (pair,) = pairs_of_group(PROMPT, group)
    assert pair["chosen"] == [{"role": "assistant", "content": "best"}]
    assert pair["rejected"][0]["content"] == "bad"
    assert (pair["chosen_reward"], pair["rejected_reward"]) == (1.0, 0.0)
    (traced,) = pairs_of_group(PROMPT, [answer(1.0, "x", reasoning="so"), answer(0.0, "y")])
    assert traced["chosen"][0]["reasoning_content"] == "so"


def test_a_group_gives_several_pairs_of_different_answers():
    group = [answer(float(n % 2), f"{n}") for n in range(5)]
    pairs = pairs_of_group(PROMPT, group, 4)
    sides = [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in pairs]
    assert sides == [("1", "0"), ("3", "2")]
    assert len(pairs_of_group(PROMPT, group, 1)) == 1


@pytest.mark.parametrize(
    "group",
    [
        [answer(1.0, "a"), answer(1.0, "b")],
        [answer(None, "a"), answer(0.0, "b")],
        [answer(1.0, "a", finish_reason="length"), answer(0.0, "b")],
        [],
    ],
    ids=["equal", "unjudged", "cut off", "empty"],
)
def test_groups_without_a_preference_give_no_pair(group):
    assert pairs_of_group(PROMPT, group, 4) == []


def test_pairs_feed_dpo(base_model, tmp_path, monkeypatch):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"Add {n}.", "verifier": "number", "reference": f"{n}"} for n in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = {"files": [str(file)], "num_prompts": 3, "group_size": 4, "max_tokens": 12}
    table |= {"num_threads": 1, "thinking_share": 0.0}
    settings = PairsSettings.parse(table, "recipe")
    inputs = {"model": base_model}
    with pytest.raises(DataError, match="none of 3 prompts has a better and a worse answer"):
        pairs_stage.run(settings, inputs, tmp_path / "equal")

    def judge_of(inputs, pool):
        return lambda prompt, completion: lambda: Outcome(float(sum(completion.token_ids) % 97), "")

    monkeypatch.setattr(pairs_stage, "judge_of", judge_of)
    # an untrained model never ends its turn; here an answer may end anywhere
    monkeypatch.setattr(
        pairs_stage,
        "sample_groups",
        lambda *a: [[r._replace(finish_reason="stop") for r in g] for g in sample(*a)],
    )
    metrics = pairs_stage.run(settings, inputs, tmp_path / "pairs")
    assert metrics["pairs"] == metrics["prompts"] == 3
    assert 0 < metrics["reward"] < 97

    settings = DpoSettings.parse({"learning_rate": 1e-3, "num_threads": 1}, "recipe")
    metrics = dpo_stage.run(settings, inputs | {"pairs": tmp_path / "pairs"}, tmp_path / "dpo")
    assert metrics["pairs"] == 3
    assert settings.lacks({"model", "pairs"}) is None
    assert "needs data: a list `files`, a table `rounds`" in str(settings.lacks({"model"}))


sample = pairs_stage.sample_groups
