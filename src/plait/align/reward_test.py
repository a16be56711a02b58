import json
from hashlib import sha256

import pytest
import torch

from plait.align import reward_stage
from plait.align.preference import PairBatch, build_pairs, pack_pairs
from plait.align.records import Refusals
from plait.align.reward import RewardModel, load_reward_model, reward_loss
from plait.align.reward_stage import RewardSettings, run, split_pairs
from plait.core.errors import CheckpointError
from plait.data.tokenizer import Tokenizer
from plait.model.hf import load


def preferences(number):
    """Answers that end in a full stop are preferred."""
    return [
        {"prompt": f"Add {n}.", "chosen": f"It is {n}.", "rejected": f"It is {n}!"}
        for n in range(number)
    ]


@pytest.fixture(scope="module")
def trained(base_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in preferences(40)))
    table = {"files": [str(file)], "tokens_per_batch": 600, "num_epochs": 3, "num_threads": 1}
    table |= {"learning_rate": 1e-2, "held_out_share": 0.2, "checkpoint_every_steps": 4}
    settings = RewardSettings.parse(table, "recipe")
    return settings, folder / "out", run(settings, {"model": base_model}, folder / "out")


def test_it_learns_what_is_preferred_and_says_so_of_unseen_pairs(trained):
    _, _, metrics = trained
    assert 5 <= metrics["pairs_held_out"] <= 20
    assert metrics["held_out.accuracy"] == 1
    assert metrics["held_out.margin"] > 0.5
    assert "held_out.mean_reward" in metrics


def test_what_was_saved_scores_the_same_and_transformers_reads_the_backbone(
    trained, base_model, tmp_path
):
    _, out, _ = trained
    tokenizer = Tokenizer.from_directory(out / "model")
    pairs = build_pairs(preferences(9), tokenizer, 1000, Refusals(strict=True)).pairs
    model = load_reward_model(out)
    chosen, rejected = model(pack_pairs(pairs)).view(-1, 2).unbind(1)
    assert (chosen > rejected).all()
    # alone as in the pack
    alone = model(pack_pairs(pairs[:1])).view(-1)[0]
    torch.testing.assert_close(alone, chosen[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(CheckpointError, match=r"no score\.safetensors, so this is no reward model"):
        load_reward_model(base_model)


@pytest.mark.filterwarnings("ignore")
def test_transformers_loads_the_backbone(trained):
    from transformers import AutoModel

    _, out, _ = trained
    theirs = AutoModel.from_pretrained(out / "model", dtype=torch.float32)
    for module in theirs.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = tuple(theirs.config.time_step_limit)
    ours = load_reward_model(out)
    tokens = torch.arange(30, 60)[None]
    with torch.no_grad():
        hidden = theirs(tokens).last_hidden_state[0, -1]
        want = ours.lm.hidden(tokens)[0, -1]
    torch.testing.assert_close(hidden @ ours.score.weight[0], want @ ours.score.weight[0])


def test_a_new_model_finds_all_answers_equal(base_model):
    tokenizer = Tokenizer.from_directory(base_model)
    pairs = build_pairs(preferences(3), tokenizer, 1000, Refusals()).pairs
    output = reward_loss(RewardModel(load(base_model)), PairBatch(pack_pairs(pairs), None))
    assert output.total.item() / output.weight == pytest.approx(0.693147, rel=1e-5)
    assert output.metrics["mean_reward"] == 0


def test_pairs_of_one_prompt_are_never_on_both_sides(base_model):
    tokenizer = Tokenizer.from_directory(base_model)
    traced = [{"role": "assistant", "content": "c", "reasoning_content": "d"}]
    called = [
        {"role": "assistant", "content": "e"},
        {"role": "tool", "content": "f"},
        {"role": "assistant", "content": "g"},
    ]
    records = [
        {**record, "chosen": chosen, "rejected": "x"}
        for record in preferences(30)
        for chosen in ("a", "b", traced, called)
    ]
    pairs = build_pairs(records, tokenizer, 1000, Refusals(strict=True)).pairs
    learnt, held_out = split_pairs(pairs, 0.3, seed=1)
    asked = {id(pair): record["prompt"] for pair, record in zip(pairs, records, strict=True)}
    sides = [{asked[id(pair)] for pair in some} for some in (learnt, held_out)]
    assert sides[0].isdisjoint(sides[1])
    assert len(sides[1]) >= 3
    assert (len(learnt), len(held_out)) == (4 * len(sides[0]), 4 * len(sides[1]))


def test_a_killed_run_resumes_to_the_same_model(trained, base_model, tmp_path, monkeypatch):
    settings, out, _ = trained

    class Crash(BaseException):
        pass

    steps = iter(range(100))

    def dying(model, batch):
        if next(steps) == 6:
            raise Crash
        return reward_loss(model, batch)

    monkeypatch.setattr(reward_stage, "reward_loss", dying)
    with pytest.raises(Crash):
        run(settings, {"model": base_model}, tmp_path)
    monkeypatch.undo()
    run(settings, {"model": base_model}, tmp_path)
    for name in ("model.safetensors", "score.safetensors"):
        digests = {
            sha256((folder / "model" / name).read_bytes()).digest() for folder in (out, tmp_path)
        }
        assert len(digests) == 1
