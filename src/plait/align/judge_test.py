"""A reward model as judge: what it cannot score costs that answer alone."""

import math

import pytest
import torch

from plait.align.judge import model_judge
from plait.align.reward import RewardModel, load_reward_model, save_reward_model
from plait.align.rollout import Prompt
from plait.align.sft import sample_of
from plait.data.pack import pack
from plait.data.tokenizer import Tokenizer
from plait.engine.engine import Engine
from plait.engine.request import SamplingParams
from plait.model.hf import load


def prompt(*messages):
    return Prompt("q", list(messages), None, "", "")


@pytest.fixture
def completions(base_model):
    engine = Engine.from_path(base_model)
    return engine.generate(["Add A, B."] * 20, SamplingParams(max_tokens=3))


def saved(base_model, folder, value):
    model = RewardModel(load(base_model, dtype=torch.float32))
    torch.nn.init.constant_(model.score.weight, value)
    save_reward_model(model, folder, base_model)
    return folder


def test_answers_are_scored_as_the_model_scores_them_alone(base_model, completions, tmp_path):
    folder = saved(base_model, tmp_path, 0.5)
    judge, model = model_judge(folder), load_reward_model(folder)
    asked = prompt({"role": "user", "content": "Add A, B."})
    waits = [judge(asked, completion) for completion in completions]
    tokenizer = Tokenizer.from_directory(folder)
    for wait, completion in zip(waits, completions, strict=True):
        turn = {"role": "assistant", "content": completion.content}
        batch = pack([sample_of([*asked.messages, turn], None, tokenizer)])
        alone = float(model(batch).detach())
        assert wait().value == pytest.approx(alone, abs=1e-5)


def test_one_that_cannot_be_rendered_is_not_judged_and_the_others_are(
    base_model, completions, tmp_path
):
    judge = model_judge(saved(base_model, tmp_path, 0.5))
    good = prompt({"role": "user", "content": "Add A, B."})
    bad = prompt({"role": "user", "content": ["no text"]})
    outcomes = [wait() for wait in [judge(p, completions[0]) for p in (good, bad, good)]]
    assert outcomes[1].value is None
    assert "content of a user message must be text" in outcomes[1].reason
    assert outcomes[0].value == pytest.approx(outcomes[2].value)


def test_a_score_that_is_no_number_is_no_reward(base_model, completions, tmp_path):
    judge = model_judge(saved(base_model, tmp_path, math.nan))
    outcome = judge(prompt({"role": "user", "content": "Add A, B."}), completions[0])()
    assert outcome == (None, "the reward model gives nan")
