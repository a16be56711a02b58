import json
from hashlib import sha256

import pytest
import torch

from plait.align import dpo_stage
from plait.align.dpo_stage import DpoSettings, dpo_loss, run
from plait.align.preference import (
    PairBatch,
    answer_logprobs,
    build_pairs,
    pack_pairs,
    reference_logprobs,
)
from plait.align.records import Refusals
from plait.core.errors import DataError
from plait.data.pack import pack
from plait.data.tokenizer import Tokenizer
from plait.model.hf import load


def preferences(number=6):
    return [
        {
            "id": f"p{n}",
            "prompt": f"Add {n}, {n + 1}.",
            "chosen": [
                {"role": "assistant", "content": f"Answer: {2 * n + 1}", "reasoning_content": "A"}
            ],
            "rejected": "Cards" + "?" * n,
        }
        for n in range(number)
    ]


@pytest.fixture(scope="module")
def tokenizer(base_model):
    return Tokenizer.from_directory(base_model)


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return build_pairs(preferences(), tokenizer, 1000, Refusals(strict=True)).pairs


def naive(model, sample):
    """Log-probability of a sample's answer, alone and from whole logits."""
    logits = model(torch.tensor([sample.ids]))[0, :-1]
    every = torch.log_softmax(logits, -1).gather(1, torch.tensor(sample.ids[1:])[:, None])[:, 0]
    return (every * torch.tensor(sample.weights[1:])).sum()


def test_packed_answers_have_the_log_probability_they_have_alone(base_model, pairs):
    model = load(base_model, dtype=torch.float64)
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    got = answer_logprobs(model, pack(sides))
    want = torch.stack([naive(model, side) for side in sides])
    torch.testing.assert_close(got.sums, want, rtol=1e-10, atol=0)
    assert got.counts.tolist() == [sum(side.weights) for side in sides]
    # In whatever batches: some need one of two pairs, some all.
    for tokens_per_batch in (max(p.num_tokens for p in pairs), 1000):
        known = reference_logprobs(model, pairs, tokens_per_batch)
        torch.testing.assert_close(known.flatten().double(), want.detach(), rtol=1e-6, atol=0)


def test_at_the_reference_the_loss_is_ln_2_and_pulls_apart(base_model, pairs):
    model = load(base_model, dtype=torch.float64)
    packed = pack_pairs(pairs)
    with torch.no_grad():
        known = answer_logprobs(model, packed).sums.view(-1, 2)
    output = dpo_loss(model, PairBatch(packed, known), beta=0.1)
    assert output.total.item() / output.weight == pytest.approx(0.6931471805599453, rel=1e-12)
    output.total.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
        after = dpo_loss(model, PairBatch(packed, known), beta=0.1)
    assert after.metrics["margin"] > 0
    assert after.metrics["accuracy"] == 1


def test_pairs_that_cannot_be_learnt_from_are_counted(tokenizer):
    equal = {"id": "same", "prompt": "Q", "chosen": " x", "rejected": "x "}
    long = {"id": "long", "prompt": "Q", "chosen": "y" * 500, "rejected": "n"}
    refusals = Refusals()
    got = build_pairs([equal, long, *preferences(1)], tokenizer, 200, refusals)
    assert (len(got.pairs), got.num_too_long) == (1, 1)
    assert refusals.reasons == ["same: chosen and rejected are the same once rendered"]
    with pytest.raises(DataError, match="no preference can be learnt from: 1 pairs exceed"):
        build_pairs([equal, long], tokenizer, 200, Refusals())


def test_a_killed_dpo_run_resumes_to_the_same_model(base_model, tmp_path, monkeypatch):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in preferences(3)))
    table = {"files": [str(file)], "tokens_per_batch": 150, "num_epochs": 3, "num_threads": 1}
    table |= {"learning_rate": 1e-3, "checkpoint_every_steps": 2, "lora": {"rank": 2}}
    settings = DpoSettings.parse(table, "recipe")
    metrics = run(settings, {"model": base_model}, tmp_path / "whole")
    assert metrics["steps"] >= 6
    assert metrics["margin"] > 0

    class Crash(BaseException):
        pass

    steps = iter(range(100))

    def dying(model, batch, **settings):
        if next(steps) == 3:
            raise Crash
        return dpo_loss(model, batch, **settings)

    monkeypatch.setattr(dpo_stage, "dpo_loss", dying)
    with pytest.raises(Crash):
        run(settings, {"model": base_model}, tmp_path / "killed")
    monkeypatch.undo()
    run(settings, {"model": base_model}, tmp_path / "killed")
    whole, killed = (
        sha256((tmp_path / name / "model" / "model.safetensors").read_bytes()).digest()
        for name in ("whole", "killed")
    )
    assert whole == killed
