import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from plait.align import sft_stage
from plait.align.records import conversation_messages
from plait.align.sft_stage import SftSettings, check_disjoint, run
from plait.core.errors import ConfigError, DataError
from plait.core.recipe import read_recipe
from plait.data.tokenizer import Tokenizer
from plait.data.train_tokenizer import train_tokenizer
from plait.model.hf import load, save
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.train import fit

RECIPES = Path(__file__).parents[3] / "recipes"
SETTINGS = {
    "chains": {"num_train": 30, "num_test": 8, "chain_lengths": [2], "num_pairs": 2},
    "tokens_per_batch": 400,
    "learning_rate": 0.01,
    "checkpoint_every_steps": 2,
    "num_threads": 1,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run folder as pretraining leaves it: an untrained model with its tokenizer."""
    folder = tmp_path_factory.mktemp("pretrain")
    texts = ["Cards: A1, B2. Add A, B. Last digit? </think>\n\n"] * 9
    train_tokenizer(texts, vocab_size=310).save(folder / "tokenizer")
    vocab_size = Tokenizer.from_directory(folder / "tokenizer").vocab_size
    model = init_weights(HybridLM(ModelSpec.preset("test", vocab_size=vocab_size)), 0)
    save(model, folder / "model", tokenizer_from=folder / "tokenizer")
    return folder


def parse(**changes):
    table = {k: v for k, v in (SETTINGS | changes).items() if v is not None}
    return SftSettings.parse(table, "recipe")


def digests(out):
    names = ("model/model.safetensors", "data/train.jsonl", "data/test.jsonl")
    return [sha256((out / name).read_bytes()).hexdigest() for name in names]


def records(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned")
    return out, run(parse(), {"model": base}, out)


def test_the_stage_leaves_a_model_its_data_and_held_out_questions(tuned, base):
    out, metrics = tuned
    before, after = load(base / "model"), load(out / "model")
    assert after.spec == before.spec
    moved = [
        not torch.equal(new, old)
        for new, old in zip(after.parameters(), before.parameters(), strict=True)
    ]
    assert all(moved)
    assert Tokenizer.from_directory(out / "model").chat_template is not None
    train = records(out / "data" / "train.jsonl")
    assert len(train) == metrics["samples"] == 30
    questions = records(out / "data" / "test.jsonl")
    assert len(questions) == 8
    assert set(questions[0]) == {"id", "family", "prompt", "verifier", "reference"}
    asked = {record["messages"][0]["content"] for record in train}
    assert not asked & {question["prompt"][0]["content"] for question in questions}
    steps = [line for line in records(out / "metrics.jsonl") if "loss" in line]
    assert len(steps) == metrics["steps"] >= 5
    assert steps[-1]["tokens"] == metrics["tokens"]
    assert metrics["loss"] < 0.8 * steps[0]["loss"]


def test_killed_tuning_resumes_to_the_same_model(tuned, base, tmp_path, monkeypatch):
    class Crash(BaseException):
        pass

    steps = iter(range(100))

    def dying(model, batch):
        if next(steps) == 3:
            raise Crash
        return loss(model, batch)

    loss = sft_stage.next_token_loss
    monkeypatch.setattr(sft_stage, "next_token_loss", dying)
    with pytest.raises(Crash):
        run(parse(), {"model": base}, tmp_path)
    monkeypatch.setattr(sft_stage, "next_token_loss", loss)
    monkeypatch.setattr(fit, "save", lambda *_, **__: (_ for _ in ()).throw(Crash))
    with pytest.raises(Crash):
        run(parse(), {"model": base}, tmp_path)
    monkeypatch.undo()
    run(parse(), {"model": base}, tmp_path)
    assert digests(tmp_path) == digests(tuned[0])


def test_files_of_conversations_are_learnt_too(base, tmp_path):
    talk = {"messages": [{"role": "user", "content": "Hi"}]}
    answered = {"messages": [*talk["messages"], {"role": "assistant", "content": "Hello"}]}
    answered["title"] = "half a surrogate pair: \ud83d"
    long = {"messages": [talk["messages"][0], {"role": "assistant", "content": "x" * 500}]}
    file = tmp_path / "talk.jsonl"
    file.write_text("\n".join(json.dumps(record) for record in (answered, answered, long)))
    # No generated tasks: any directory with a model will do, and nothing is held out.
    settings = parse(chains=None, files=[str(file)], num_epochs=2.0)
    metrics = run(settings, {"model": base / "model"}, tmp_path / "out")
    assert metrics["samples"] == 2
    assert metrics["samples_too_long"] == 1
    assert metrics["steps"] == 2
    assert not (tmp_path / "out" / "data" / "test.jsonl").exists()

    with pytest.raises(
        DataError, match=r"no conversation .* 3 samples exceed tokens_per_batch = 3"
    ):
        run(settings.model_copy(update={"tokens_per_batch": 3}), {"model": base}, tmp_path / "no")
    file.write_text(json.dumps(answered) + "\n" + json.dumps(talk) + "\n{\n")
    metrics = run(settings, {"model": base}, tmp_path / "some")
    assert (metrics["samples"], metrics["rows_refused"]) == (1, 2)
    refused = (tmp_path / "some" / "data" / "refused.txt").read_text()
    assert "talk.jsonl, line 2: no assistant turn" in refused
    assert "talk.jsonl, line 3: not JSON" in refused
    with pytest.raises(DataError, match=r"talk.jsonl, line 3: not JSON"):
        run(settings.model_copy(update={"strict": True}), {"model": base}, tmp_path / "no")


def test_earlier_stages_are_learnt_from_and_their_traces_shortened(base, tmp_path):
    def talk(number):
        turn = {"role": "assistant", "content": "2", "reasoning_content": "A1\n" * 9}
        return {"messages": [{"role": "user", "content": f"Add {number}."}, turn]}

    def told(number):
        [question, turn] = talk(number)["messages"]
        return {"prompt": [question], "completion": [turn]}

    made, taught = tmp_path / "synth", tmp_path / "sft"
    for file, first in ((made / "conversations.jsonl", 0), (taught / "data/train.jsonl", 100)):
        file.parent.mkdir(parents=True)
        file.write_text(
            "".join(json.dumps((talk, told)[n % 2](first + n)) + "\n" for n in range(60))
        )
    traces = {"reasoning_off_share": 0.2, "truncated_share": 0.3, "truncated_tokens": [3, 6]}
    settings = parse(chains=None, traces=traces, replay_share=0.5)
    inputs = {"model": base, "conversations": made, "replay": taught}
    metrics = run(settings, inputs, tmp_path / "out")
    learnt = records(tmp_path / "out" / "data" / "train.jsonl")
    assert metrics["samples"] == len(learnt)
    talks = [conversation_messages(record) for record in learnt]
    replayed = [talk for talk in talks if int(talk[0]["content"][4:-1]) >= 100]
    assert len(learnt) - len(replayed) == 60
    assert 18 <= len(replayed) <= 42
    tokenizer = Tokenizer.from_directory(base / "model")
    found = [talk[1].get("reasoning_content") for talk in talks]
    lengths = [0 if trace is None else len(tokenizer.encode_plain(trace)) for trace in found]
    whole = max(lengths)
    assert whole > 6
    assert {length for length in lengths if 0 < length < whole} == {3, 4, 5, 6}
    assert 0.1 < lengths.count(0) / len(learnt) < 0.3
    assert 0.35 < lengths.count(whole) / len(learnt) < 0.65


def test_a_held_out_question_in_the_training_data_stops_the_stage():
    def record(id_, key, text):
        return {"id": id_, key: [{"role": "user", "content": text}]}

    train = [record("t1", "messages", "Add A, B."), record("t2", "messages", "Add A, C.")]
    train.append({"id": "t3", "prompt": "Add A, D.", "completion": "1"})
    check_disjoint(train, [record("q1", "prompt", "Add B, A.")])
    with pytest.raises(DataError, match=r"held-out question q3 .* \(t3\)"):
        check_disjoint(train, [record("q3", "prompt", "Add A, D.")])
    with pytest.raises(DataError, match=r"held-out question q2 .* \(t2\)"):
        # Letters' case and white space do not make another question.
        check_disjoint(train, [record("q2", "prompt", " add A,\nC. ")])


def test_contradictions_are_named(base, tmp_path):
    with pytest.raises(ConfigError, match=r"files: nowhere\.jsonl does not exist"):
        parse(files=["nowhere.jsonl"]).files_read()
    assert "needs data" in str(parse(chains=None).lacks({"model"}))
    assert parse(chains=None).lacks({"model", "replay"}) is None
    with pytest.raises(ConfigError, match=r"truncated_tokens are \[fewest, most\].* \(9, 3\)"):
        parse(traces={"truncated_tokens": [9, 3]})
    with pytest.raises(
        ConfigError, match=r"unknown key 'chains\.num_pair'; did you mean 'num_pairs'"
    ):
        parse(chains={"num_pair": 3})


def test_the_schedule_follows_from_data_and_epochs():
    settings = parse(num_epochs=1.5, accumulation=2, warmup_steps=4, decay_share=0.3)
    schedule = settings.schedule(40)
    assert (schedule.num_steps, schedule.warmup_steps, schedule.decay_steps) == (30, 4, 9)
    tiny = settings.schedule(1)
    assert (tiny.num_steps, tiny.warmup_steps, tiny.decay_steps) == (1, 0, 0)


def test_the_tiny_recipe_has_the_reports_shares():
    stages = {stage.key: stage for stage in read_recipe(RECIPES / "tiny").stages}
    names = ("sft", "sft_tools", "sft_long")
    settings = [SftSettings.parse(stages[name].table, name) for name in names]
    assert [each.packing for each in settings] == ["separate", "off", "separate"]
    samples = cut = off = 0.0
    for each in settings:
        assert each.chains is not None
        assert each.instructions is not None
        samples += each.chains.num_train + each.instructions.num_train
        samples += 0 if each.tool_calls is None else each.tool_calls.num_train
        cut += each.chains.truncated_share * each.chains.num_train
        off += each.chains.reasoning_off_share * each.chains.num_train
    assert off / sum(each.chains.num_train for each in settings) == pytest.approx(0.10)
    assert cut / samples == pytest.approx(0.05, abs=0.005)
    assert settings[0].chains.truncated_share == settings[1].chains.truncated_share == 0
