import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from plait.core.errors import ConfigError
from plait.core.recipe import read_recipe
from plait.data import blend
from plait.data.train_tokenizer import train_tokenizer
from plait.model.hf import load
from plait.model.spec import ModelSpec
from plait.train import fit, pretrain
from plait.train.conftest import lines
from plait.train.pretrain import PretrainSettings, run

RECIPES = Path(__file__).parents[3] / "recipes"
VOCAB = 287
SETTINGS = {
    "model": "test",
    "total_tokens": 10 * 96,
    "sequence_tokens": 48,
    "rows_per_batch": 2,
    "learning_rate": 0.02,
    "min_learning_rate": 0.002,
    "warmup_tokens": 2 * 96,
    "decay_tokens": 3 * 96,
    "evaluate_every_steps": 6,
    "checkpoint_every_steps": 3,
    "num_threads": 1,
}


def write_documents(folder):
    for split in ("train", "validation"):
        for category, word in (("sums", "one and one is two. "), ("songs", "la le lu, la le lu! ")):
            text = "".join(word for _ in range(9))
            file = folder / "documents" / split / f"{category}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            records = [{"text": text[i:], "id": str(i), "metadata": {}} for i in range(7)]
            file.write_text("\n".join(json.dumps(record) for record in records))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_documents(folder / "curate")
    texts = ["one and one is two. la le lu, la le lu!"] * 9
    train_tokenizer(texts, vocab_size=VOCAB).save(folder / "tokenizer")
    weights = {"sums": 1.0, "songs": 1.0}
    phases = [{"until": 0.6, "weights": weights}, {"until": 1.0, "weights": weights}]
    settings = blend.BlendSettings.parse({"phases": phases, "max_epochs": 50.0}, "recipe")
    sources = {"documents": folder / "curate", "tokenizer": folder / "tokenizer"}
    blend.run(settings, sources, folder / "blend")
    return {"blend": folder / "blend", "tokenizer": folder / "tokenizer"}


def parse(**changes):
    table = {k: v for k, v in (SETTINGS | changes).items() if v is not None}
    return PretrainSettings.parse(table, "recipe")


def digest(out):
    return sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    return out, run(parse(), inputs, out)


def test_a_trained_model_is_a_directory_with_its_tokenizer(trained, inputs):
    out, metrics = trained
    model = load(out / "model")
    assert model.spec == ModelSpec.preset("test", vocab_size=VOCAB)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / "model" / name).read_bytes() == (inputs["tokenizer"] / name).read_bytes()
    assert metrics["steps"] == 10
    assert metrics["tokens"] == 10 * 96
    assert {key for key in metrics if key.startswith("bits")} == {
        f"bits_per_byte.{category}{when}"
        for category in ("sums", "songs")
        for when in ("", "_before")
    }
    for category in ("sums", "songs"):
        before = metrics[f"bits_per_byte.{category}_before"]
        assert metrics[f"bits_per_byte.{category}"] < 0.8 * before
        # An untrained model knows no more than the size of the vocabulary.
        assert before > 2.0
    evaluated = [line["step"] for line in lines(out) if "loss" not in line]
    assert evaluated == [0, 6, 10]


def test_killed_training_resumes_to_the_same_model(trained, inputs, tmp_path, monkeypatch):
    class Crash(BaseException):
        pass

    steps = iter(range(100))

    def dying(model, batch):
        if next(steps) == 8:
            raise Crash
        return pretrain_loss(model, batch)

    pretrain_loss = pretrain.next_token_loss
    monkeypatch.setattr(pretrain, "next_token_loss", dying)
    with pytest.raises(Crash):
        run(parse(), inputs, tmp_path)
    monkeypatch.setattr(pretrain, "next_token_loss", pretrain_loss)
    monkeypatch.setattr(fit, "save", lambda *_, **__: (_ for _ in ()).throw(Crash))
    with pytest.raises(Crash):
        run(parse(), inputs, tmp_path)
    monkeypatch.undo()
    again = run(parse(), inputs, tmp_path)
    assert digest(tmp_path) == digest(trained[0])
    assert lines(tmp_path) == lines(trained[0])
    clock = {"tokens_per_s"}
    assert {k: v for k, v in again.items() if k not in clock} == {
        k: v for k, v in trained[1].items() if k not in clock
    }


def test_a_finished_run_without_its_metrics_leaves_them_out(trained, inputs, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(trained[0], out)
    (out / "metrics.jsonl").unlink()
    lost = {"loss", "bits_per_byte.sums_before", "bits_per_byte.songs_before"}
    assert run(parse(), inputs, out) == {k: v for k, v in trained[1].items() if k not in lost}


def test_a_later_phase_starts_from_the_model_before(trained, inputs, tmp_path):
    longer = {"sequence_tokens": 96, "rows_per_batch": 1, "warmup_tokens": 0, "decay_tokens": 0}
    settings = parse(model=None, min_learning_rate=0.0, total_tokens=2 * 96, **longer)
    metrics = run(settings, inputs | {"model": trained[0]}, tmp_path)
    for category in ("sums", "songs"):
        at_end = trained[1][f"bits_per_byte.{category}"]
        assert metrics[f"bits_per_byte.{category}_before"] == pytest.approx(at_end, rel=0.1)
    rates = {line["learning_rate"] for line in lines(tmp_path) if "loss" in line}
    assert rates == {0.02}


def test_contradictions_are_named(trained, inputs, tmp_path):
    with pytest.raises(ConfigError, match="give exactly one"):
        run(parse(), inputs | {"model": trained[0]}, tmp_path)
    with pytest.raises(ConfigError, match="give exactly one"):
        run(parse(model=None), inputs, tmp_path)
    train_tokenizer(["other"] * 9, vocab_size=276).save(tmp_path / "other")
    with pytest.raises(ConfigError, match="vocabulary of 287, the tokenizer one of 276"):
        run(parse(), inputs | {"tokenizer": tmp_path / "other"}, tmp_path)
    with pytest.raises(ConfigError, match=r"recipe: .*no model preset 'tset'; did you mean 'test'"):
        parse(model="tset")
    with pytest.raises(ConfigError, match="10 steps"):
        parse(warmup_tokens=9 * 96)


@pytest.mark.parametrize("warmup_steps", [0.4, 2.4, 2.5, 3.5, 6.6])
def test_warmup_and_decay_may_fill_the_run(warmup_steps):
    warmup_tokens = round(warmup_steps * 96)
    for total_tokens in (10 * 96 - 40, 10 * 96, 10 * 96 + 44):
        lengths = {"warmup_tokens": warmup_tokens, "decay_tokens": total_tokens - warmup_tokens}
        schedule = parse(total_tokens=total_tokens, **lengths).schedule
        assert schedule.warmup_steps + schedule.decay_steps == schedule.num_steps == 10
    assert parse(total_tokens=9, warmup_tokens=0, decay_tokens=0).schedule.decay_steps == 0
    with pytest.raises(ConfigError, match=r"warm-up \(0 steps\) and decay \(11 steps\)"):
        parse(warmup_tokens=0, decay_tokens=11 * 96)


def test_an_inline_model_and_bfloat16_train(inputs, tmp_path):
    table = ModelSpec.preset("test").model_dump(exclude={"vocab_size"}) | {"pattern": "M-"}
    short = {"total_tokens": 2 * 96, "warmup_tokens": 0, "decay_tokens": 0}
    settings = parse(model=table, precision="bfloat16", **short)
    run(settings, inputs, tmp_path)
    assert load(tmp_path / "model").spec.pattern == "M-"


def settings_of(recipe, key):
    stages = {stage.key: stage for stage in read_recipe(RECIPES / recipe).stages}
    assert stages[key].kind == "pretrain"
    return PretrainSettings.parse(stages[key].table, key)


def test_the_full_recipe_is_the_reports():
    # Source: arXiv 2508.14444 sections 2.5 and 2.6.
    settings = settings_of("nano-12b-v2", "pretrain")
    assert settings.tokens_per_step == 6_029_312
    assert settings.schedule.num_steps == 3_317_128
    assert settings.schedule.warmup_steps == 1327
    assert settings.schedule.decay_steps == 597_083
    assert settings.spec(131_072).num_parameters == 12_310_001_152
    extend = settings_of("nano-12b-v2", "extend")
    assert extend.tokens_per_step == 12 * 524_288
    assert extend.schedule.num_steps == 3004
    assert {extend.schedule.rate(step) for step in (0, 1500, 3003)} == {4.5e-6}


def test_the_tiny_recipe_uses_the_same_keys():
    tiny = settings_of("tiny", "pretrain")
    full = settings_of("nano-12b-v2", "pretrain")
    assert full.model_fields_set <= tiny.model_fields_set
    assert tiny.schedule.decay_steps > 0
