import json
from decimal import Decimal
from hashlib import sha256

import pytest
import torch

from plait.align import grpo_stage
from plait.align.grpo import PolicySettings, check_judged, policy_batch, policy_loss
from plait.align.grpo_stage import GrpoSettings, run
from plait.align.prompts import build_prompts
from plait.align.records import Refusals
from plait.align.rollout import Rollout, read_groups, write_groups
from plait.align.sampling import sample_groups
from plait.align.verify import Outcome
from plait.core.errors import DataError
from plait.data.tokenizer import Tokenizer
from plait.engine.engine import Engine
from plait.engine.request import SamplingParams
from plait.grade.verifiers import VERIFIERS
from plait.model.hf import load
from plait.train.loop import DivergedError
from plait.train.optim import AdamWSettings, adamw, set_learning_rate

POLICY = PolicySettings()


def prompts(tokenizer, number=3):
    records = [
        {"id": f"q{n}", "prompt": f"Add {n}, 1.", "verifier": "number", "reference": f"{n + 1}"}
        for n in range(number)
    ]
    return build_prompts(records, tokenizer, 100, Refusals(strict=True))


@pytest.fixture(scope="module")
def engine(base_model):
    model = load(base_model, dtype=torch.float32)
    return Engine(model, Tokenizer.from_directory(base_model))


def by_length(prompt, completion):
    return lambda: Outcome(float(len(completion.content)), "")


@pytest.fixture(scope="module")
def groups(engine):
    """Rollouts with thinking on and off, some closed by a budget."""
    params = SamplingParams(max_tokens=24, max_thinking_tokens=3, budget_grace_tokens=2)
    asked = prompts(engine.tokenizer)
    return sample_groups(engine, asked, 4, params, lambda p: p.id != "q1", by_length, seed=5)


def test_groups_share_prompt_and_mode_and_hold_what_was_sampled(groups, engine):
    assert [len(group) for group in groups] == [4, 4, 4]
    for group, thinks in zip(groups, (True, False, True), strict=True):
        assert {tuple(r.prompt_ids) for r in group} == {tuple(group[0].prompt_ids)}
        assert all(r.thinking == thinks for r in group)
        assert len({tuple(r.token_ids) for r in group}) > 1
    forced = [r for group in groups for r in group if any(r.forced)]
    assert forced
    again = sample_groups(
        engine,
        prompts(engine.tokenizer),
        4,
        SamplingParams(max_tokens=24, max_thinking_tokens=3, budget_grace_tokens=2),
        lambda p: p.id != "q1",
        by_length,
        seed=5,
    )
    assert again == groups


def test_forced_tokens_and_prompts_carry_no_weight(groups):
    batch = policy_batch(groups, POLICY, is_fresh=True)
    rollouts = [r for group in groups for r in group]
    assert batch.packed.weights.sum() == sum(r.forced.count(False) for r in rollouts)
    start = 0
    for r in rollouts:
        length = len(r.prompt_ids) + len(r.token_ids)
        weights = batch.packed.weights[0, start : start + length].tolist()
        # position t predicts token t + 1
        assert weights[len(r.prompt_ids) - 1 : -1] == [float(not forced) for forced in r.forced]
        assert sum(weights[: len(r.prompt_ids) - 1]) == weights[-1] == 0
        start += length


def test_trainer_and_engine_agree_on_every_sampled_token(groups, engine):
    batch = policy_batch(groups, POLICY, is_fresh=True)
    output = policy_loss(engine.model, batch, POLICY)
    assert 0 < output.metrics["max_logprob_gap"] < 5e-5
    assert output.weight == len(batch.old_logprobs)
    # ratios of 1: the loss is the mean of the advantages, weighted by length
    lengths = [r.forced.count(False) for group in groups for r in group]
    want = -(batch.advantages * torch.tensor(lengths)).sum()
    assert output.total.item() == pytest.approx(want.item(), abs=1e-2)


def test_a_policy_that_is_not_the_engines_stops_the_run(groups, engine, base_model):
    other = load(base_model, dtype=torch.float32)
    with torch.no_grad():
        other.lm_head.weight[5] += 0.01
    batch = policy_batch(groups, POLICY, is_fresh=True)
    with pytest.raises(DivergedError, match="engine and trainer differ by"):
        policy_loss(other, batch, POLICY)
    # later in a round the policy has moved, and the ratios account for it
    stale = policy_loss(other, batch._replace(is_fresh=False), POLICY)
    assert "max_logprob_gap" not in stale.metrics


def test_what_was_read_before_an_update_is_not_gone_on_from(base_model):
    model = load(base_model, dtype=torch.float32)
    engine = Engine(model, Tokenizer.from_directory(base_model))
    question = "Add one to two" + " and to three" * 20
    record = {"id": "q", "prompt": question, "verifier": "number", "reference": "1"}
    asked = build_prompts([record], engine.tokenizer, 1000, Refusals(strict=True))

    def loss():
        params = SamplingParams(max_tokens=8)
        groups = sample_groups(engine, asked, 4, params, lambda _: False, by_length, seed=1)
        return policy_loss(model, policy_batch(groups, POLICY, is_fresh=True), POLICY)

    optimizer = adamw(model, AdamWSettings())
    set_learning_rate(optimizer, 0.01)
    loss().total.backward()
    optimizer.step()
    assert engine.stats().prefix_hit_tokens
    assert loss().metrics["max_logprob_gap"] < 1e-4  # the second time the same is asked


def test_equal_rewards_move_nothing(groups, engine, base_model):
    equal = [[r._replace(reward=0.3) for r in group] for group in groups]
    model = load(base_model, dtype=torch.float32)
    output = policy_loss(model, policy_batch(equal, POLICY, is_fresh=True), POLICY)
    output.total.backward()
    assert all(p.grad.abs().max() == 0 for p in model.parameters() if p.grad is not None)
    assert output.metrics["equal_groups"] == 1


def test_an_answer_without_a_reward_is_out_of_its_group(groups):
    broken = [list(group) for group in groups]
    broken[0][1] = broken[0][1]._replace(reward=None)
    batch = policy_batch(broken, POLICY, is_fresh=True)
    assert batch.advantages[1] == 0
    assert batch.figures["unjudged"] == pytest.approx(1 / 12)
    whole = policy_batch(groups, POLICY, is_fresh=True)
    torch.testing.assert_close(batch.advantages[4:], whole.advantages[4:])
    cut = [[r._replace(finish_reason="length") for r in group] for group in groups]
    skipping = PolicySettings(skip_cut_off=True)
    assert policy_batch(cut, skipping, is_fresh=True).advantages.abs().max() == 0


def test_a_cut_off_answer_that_is_skipped_changes_nothing(groups, engine):
    cut = [[group[0]._replace(finish_reason="length"), *group[1:]] for group in groups]
    whole = [[group[0]._replace(finish_reason="stop"), *group[1:]] for group in groups]
    skipping = PolicySettings(skip_cut_off=True, max_logprob_gap=100)

    def loss(answers):
        return policy_loss(engine.model, policy_batch(answers, skipping, is_fresh=True), skipping)

    num_tokens = sum(group[0].forced.count(False) for group in cut)
    assert loss(whole).weight - loss(cut).weight == num_tokens
    none = loss([[r._replace(finish_reason="length") for r in group] for group in groups])
    assert (none.total, none.weight) == (0, 1)


def test_empty_groups_and_rounds_that_nobody_can_judge(groups, caplog):
    with pytest.raises(DataError, match="a group has no rollouts"):
        policy_batch([groups[0], []], POLICY, is_fresh=True)
    failed = [[r._replace(reward=None, reason="boom") for r in group] for group in groups]
    with pytest.raises(DataError, match="none of 12 answers could be judged; the first: q0: boom"):
        check_judged(failed)
    check_judged([groups[0], failed[1]])
    assert "4 answers could not be judged; the first: q1: boom" in caplog.text


def test_rollouts_come_back_from_their_file_bit_for_bit(groups, tmp_path):
    write_groups(tmp_path / "round.jsonl", groups)
    assert read_groups(tmp_path / "round.jsonl") == groups
    assert isinstance(read_groups(tmp_path / "round.jsonl")[0][0], Rollout)
    (tmp_path / "round.jsonl").write_text("{\n")
    with pytest.raises(DataError, match=r"round\.jsonl: rollouts to resume from"):
        read_groups(tmp_path / "round.jsonl")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "Q", "verifier": "nmber"}, r"no verifier 'nmber'; did you mean 'number'"),
        ({"verifier": "number"}, "a list of messages under `prompt`; its keys: verifier"),
        ({"prompt": "Q", "verifier": "number"}, "needs a `reference`"),
        ({"prompt": "Q", "verifier": "number", "reference": None}, "needs a `reference`"),
        (
            {"prompt": "x" * 400, "verifier": "number", "reference": "1"},
            r"the prompt has \d+ tokens, more than the 100 that max_prompt_tokens",
        ),
    ],
)
def test_prompts_that_cannot_be_asked_are_counted(engine, record, message):
    refusals = Refusals()
    assert build_prompts([{"id": "q9", **record}], engine.tokenizer, 100, refusals) == []
    assert len(refusals.reasons) == 1
    with pytest.raises(DataError, match=f"q9: .*{message}"):
        build_prompts([{"id": "q9", **record}], engine.tokenizer, 100, Refusals(strict=True))


def test_references_of_parquet_may_be_decimals(engine):
    row = {"prompt": "Q", "verifier": "number", "reference": [Decimal("1.5")]}
    [prompt] = build_prompts([row], engine.tokenizer, 100, Refusals(strict=True))
    assert prompt.reference == '["1.5"]'


def settings(tmp_path, *, num_steps=4, **changes):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"Add {n}.", "verifier": "number", "reference": f"{n}"} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = {
        "files": [str(file)],
        "num_steps": num_steps,
        "group_size": 2,
        "prompts_per_batch": 1,
        "accumulation": 2,
        "steps_per_round": 2,
        "max_tokens": 6,
        "learning_rate": 1e-3,
        "checkpoint_every_steps": 1,
        "num_threads": 1,
        "policy": {"kl_weight": 0.1},
    }
    return GrpoSettings.parse(table | changes, "recipe")


def test_as_many_rounds_are_kept_as_checkpoints_need(tmp_path):
    apart = {"steps_per_round": 2, "checkpoint_every_steps": 3, "keep_checkpoints": 2}
    assert settings(tmp_path, keep_rounds=1, **apart).rounds_kept == 4  # steps 0, 3 and 6: 0 to 3
    assert settings(tmp_path, keep_rounds=9, **apart).rounds_kept == 9


def test_a_step_is_not_chosen_by_prompts_that_are_not_there(base_model, tmp_path):
    test = tmp_path / "test.jsonl"
    test.write_text('{"prompt": "Add 9.", "verifier": "number", "reference": "9"}\n')
    for files in ([], [str(test)]):
        chosen = settings(tmp_path, choose_step=True, test_files=files)
        with pytest.raises(DataError, match=f"choose_step: {len(files)} held-out prompts are too"):
            run(chosen, {"model": base_model}, tmp_path / "out")


def by_ids(inputs, pool):
    """Instead of verifiers: a reward that an untrained model varies."""
    return lambda prompt, completion: lambda: Outcome(float(sum(completion.token_ids) % 7), "")


def test_a_run_killed_in_mid_round_resumes_to_the_same_model(base_model, tmp_path, monkeypatch):
    monkeypatch.setattr(grpo_stage, "judge_of", by_ids)
    chosen = settings(tmp_path)
    metrics = run(chosen, {"model": base_model}, tmp_path / "whole")
    assert metrics["steps"] == 4
    assert metrics["kl"] > 0
    lines = [json.loads(x) for x in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [("max_logprob_gap" in line) for line in lines] == [True, False, True, False]
    assert metrics["max_logprob_gap"] == max(line.get("max_logprob_gap", 0) for line in lines) > 0

    class Crash(BaseException):
        pass

    calls = iter(range(100))

    def dying(model, batch, settings):
        if next(calls) == 7:  # the second micro-batch of step 4, the last of round 2
            raise Crash
        return policy_loss(model, batch, settings)

    monkeypatch.setattr(grpo_stage, "policy_loss", dying)
    with pytest.raises(Crash):
        run(chosen, {"model": base_model}, tmp_path / "killed")
    monkeypatch.setattr(grpo_stage, "policy_loss", policy_loss)
    run(chosen, {"model": base_model}, tmp_path / "killed")
    (tmp_path / "killed" / "metrics.jsonl").unlink()
    left = run(chosen, {"model": base_model}, tmp_path / "killed")
    assert left["steps"] == 4
    assert not left.keys() & {"loss", "max_logprob_gap"}
    for name in ("model/model.safetensors", "rollouts/round_000001.jsonl"):
        digests = {
            sha256((tmp_path / run_ / name).read_bytes()).digest() for run_ in ("whole", "killed")
        }
        assert len(digests) == 1, name


def test_a_run_survives_a_verifier_that_crashes_on_one_prompt(
    base_model, tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(VERIFIERS, "odd", "operator:index")  # takes no three arguments
    chosen = settings(
        tmp_path,
        num_steps=1,
        prompts_per_batch=4,
        accumulation=1,
        steps_per_round=1,
        lora={"rank": 2},
    )
    file = tmp_path / "prompts.jsonl"
    first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([first.replace('"number"', '"odd"'), *rest]))
    metrics = run(chosen, {"model": base_model}, tmp_path / "out")
    assert metrics["unjudged"] == 0.25
    # An untrained model is never right.
    assert "the answers to each prompt have equal rewards" in caplog.text
