"""The stages `compress` and `distill` on a small untrained parent and made-up text."""

import json

import pytest
import torch
from torch.nn import functional as F

from plait.compress import stage as stage_module
from plait.compress.cut import Shape
from plait.compress.distill import check_pair, online_loss, stored_loss
from plait.compress.distill_stage import DistillSettings, distill
from plait.compress.healing import Yardstick
from plait.compress.importance import ScoreSettings
from plait.compress.memory import Workload, memory
from plait.compress.prune import prune
from plait.compress.ranking import Ranked, StreamedYardstick, pareto
from plait.compress.scores import Scores
from plait.compress.search import Candidate
from plait.compress.stage import CompressSettings, compress
from plait.compress.teacher import Taught, store
from plait.compress.throughput import Throughput
from plait.core.config import Settings
from plait.core.errors import ConfigError, DataError
from plait.data.pack import Sample, pack
from plait.data.tokenizer import Tokenizer
from plait.data.train_tokenizer import train_tokenizer
from plait.kernels import native
from plait.model.hf import load, save
from plait.model.hf_stream import ModelDirectory
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.train.losses import next_token_loss

COMPRESS = {
    "memory": "345KiB",
    "workload": {
        "context_tokens": 64,
        "prefill_chunk_tokens": 16,
        "dtype": "float32",
        "kv_dtype": "float32",
        "fixed": "0B",
    },
    "ranges": {
        "num_layers": [5, 6, 1],
        "keep_attention": 1,
        "hidden_size": [40, 48, 4],
        "intermediate_size": [48, 80, 16],
        "mamba_num_heads": [4, 6, 2],
        "mamba_head_dim": [10, 10, 1],
    },
    "calibration_rows": 8,
    "row_tokens": 32,
    "held_out_rows": 3,
    "top_k": 2,
    "healing": {"num_steps": 3, "learning_rate": 0.01},
    "num_threads": 1,
}
DISTILL = {
    "phases": [
        {"tokens": 256, "sequence_tokens": 16, "rows_per_batch": 2},
        {"tokens": 256, "sequence_tokens": 32, "rows_per_batch": 2},
    ],
    "learning_rate": 0.005,
    "checkpoint_every_steps": 3,
    "num_threads": 1,
}


class Rows:
    """Packed batches of made-up documents; each depends on its number alone."""

    def __init__(self, vocab_size, sequence_tokens, rows, num_batches=10**6):
        self.arguments = vocab_size, sequence_tokens, rows
        self.num_batches, self.number = num_batches, 0

    def __next__(self):
        if self.number == self.num_batches:
            raise StopIteration
        vocab_size, length, rows = self.arguments
        generator = torch.Generator().manual_seed(self.number)
        ids = torch.randint(vocab_size, (rows, length), generator=generator).tolist()
        self.number += 1
        return pack([Sample(row, [0.0] * 3 + [1.0] * (length - 3)) for row in ids])

    def state(self):
        return {"number": self.number}

    def load_state(self, state):
        self.number = state["number"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent")
    train_tokenizer(["Cards: A1, B2. Add A, B."] * 9, vocab_size=310).save(folder / "tokenizer")
    vocab_size = Tokenizer.from_directory(folder / "tokenizer").vocab_size
    spec = ModelSpec.preset("test", vocab_size=vocab_size)
    save(init_weights(HybridLM(spec), 3), folder / "model", tokenizer_from=folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def source(parent):
    vocab_size = load(parent / "model").spec.vocab_size

    def give(sequence_tokens, rows_per_batch, num_batches, seed, *, num_new=0):
        return Rows(vocab_size, sequence_tokens, rows_per_batch, num_batches)

    return give


def parse(kind: type[Settings], table, **changes):
    return kind.parse({**table, **changes}, "recipe")


@pytest.fixture(scope="module")
def cut(parent, source, tmp_path_factory):
    out = tmp_path_factory.mktemp("cut")
    return out, compress(parse(CompressSettings, COMPRESS), {"model": parent}, out, source)


def test_the_child_fits_and_is_what_was_chosen(parent, cut):
    out, metrics = cut
    found = json.loads((out / "candidates.json").read_text())
    child = load(out / "model")
    [chosen] = [each for each in found["ranked"] if each["name"] == found["finalists"][0]]
    assert child.spec.num_parameters == chosen["num_parameters"] == metrics["parameters"]
    assert child.spec.num_parameters < metrics["parameters_parent"]
    workload = Workload.parse(COMPRESS["workload"], "test")
    assert memory(child.spec, workload).total == chosen["memory"]["total"] <= 345 * 1024
    assert child.spec.num_attention_layers == 1
    assert (out / "model" / "tokenizer.json").exists()


def test_the_search_measures_before_it_chooses(cut):
    found = json.loads((cut[0] / "candidates.json").read_text())
    kls = [each["kl"] for each in found["ranked"]]
    assert kls == sorted(kls)
    healed = {e["name"]: e["healed_kl"] for e in found["ranked"] if e["healed_kl"] is not None}
    assert set(healed) == set(found["finalists"])
    assert found["finalists"][0] == min(healed, key=lambda name: healed[name])
    assert cut[1]["kl_healed"] == min(healed.values()) != cut[1]["kl"]


def test_what_was_not_healed_is_not_reported_so(parent, source, tmp_path):
    settings = parse(CompressSettings, COMPRESS, top_k=1)
    metrics = compress(settings, {"model": parent}, tmp_path, source)
    assert "kl" in metrics
    assert "kl_healed" not in metrics


def test_interrupted_it_goes_on_and_ends_the_same(parent, cut, source, tmp_path, monkeypatch):
    """A stop while candidates are healed: scores and ranking are not made again."""
    settings = parse(CompressSettings, COMPRESS)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stage_module, "heal", stop)
        with pytest.raises(KeyboardInterrupt):
            compress(settings, {"model": parent}, tmp_path, source)
    with monkeypatch.context() as patched:
        patched.setattr(StreamedYardstick, "kl", stop)  # what was ranked is not ranked again
        metrics = compress(settings, {"model": parent}, tmp_path, source)
    assert metrics == cut[1]
    name = "model/model.safetensors"
    assert (tmp_path / name).read_bytes() == (cut[0] / name).read_bytes()


def test_a_budget_that_nothing_fits(parent, source, tmp_path):
    settings = parse(CompressSettings, COMPRESS, memory="20KiB")
    with pytest.raises(ConfigError, match="no allowed child fits 20 KiB: the smallest"):
        compress(settings, {"model": parent}, tmp_path, source)


def test_too_little_text(parent, source, tmp_path):
    def short(sequence_tokens, rows_per_batch, num_batches, seed, *, num_new=0):
        return source(sequence_tokens, rows_per_batch, 5, seed)

    with pytest.raises(DataError, match="the text ended"):
        compress(parse(CompressSettings, COMPRESS), {"model": parent}, tmp_path, short)


def test_the_yardstick_is_the_plain_divergence(parent, source):
    model = load(parent / "model").double()
    other = init_weights(HybridLM(model.spec, dtype=torch.float64), 9)
    batches = [next(source(16, 2, 9, 0)) for _ in range(2)]
    model.requires_grad_(False)
    other.requires_grad_(False)
    yardstick = Yardstick(model, batches)
    total = weight = 0.0
    for batch in batches:
        log_p, log_q = (
            m(batch.tokens, cu_seqlens=batch.cu_seqlens)[0].log_softmax(-1) for m in (model, other)
        )
        each = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
        total += float((each * batch.weights[0]).sum())
        weight += float(batch.weights.sum())
    assert yardstick.kl(other) == pytest.approx(total / weight, rel=1e-10)
    assert yardstick.kl(model) == pytest.approx(0.0, abs=1e-12)


def test_importance_beats_chance_where_it_is_planted(parent, source, cut):
    """Channels that nearly vanish in the parent: keeping the others costs least."""
    model = load(parent / "model")
    quiet = torch.arange(0, model.spec.intermediate_size, 2)
    with torch.no_grad():
        for layer in model.backbone.layers:
            if hasattr(layer.mixer, "up_proj"):
                layer.mixer.up_proj.weight[quiet] *= 1e-3
    scores = Scores.read(cut[0] / "scores")
    loud = torch.ones(model.spec.intermediate_size).index_fill(0, quiet, 1e-6)
    scores = scores._replace(feed_forward=dict.fromkeys(scores.feed_forward, loud))
    half = {"intermediate_size": model.spec.intermediate_size // 2}
    shape = Shape.of(model.spec).model_copy(update=half)
    yardstick = Yardstick(model, [next(source(32, 2, 9, 0))])
    kl = []
    for each in (scores, scores.shuffled(0)):
        kept = each.cut(shape, model.spec)
        kl.append(yardstick.kl(prune(model, kept, each.corrections(kept))))
    assert kl[0] < kl[1] / 10


def test_a_layer_at_a_time_is_as_far_as_whole_models(parent, source, cut):
    """Packed batches of unequal length, children of unequal depth and widths."""
    model, scores = load(parent / "model").requires_grad_(False), Scores.read(cut[0] / "scores")
    held_out = [next(source(32, 2, 9, 0)), next(source(17, 1, 9, 0))]
    whole, directory = Shape.of(model.spec), ModelDirectory(parent / "model")
    deep = whole.model_copy(update={"hidden_size": 40, "intermediate_size": 48})
    wide = whole.model_copy(update={"layers": scores.layers(5), "mamba_num_heads": 4})
    kept = [scores.cut(shape, model.spec) for shape in (whole, deep, wide)]
    cuts = [(each, scores.corrections(each)) for each in kept]
    sweep = ScoreSettings().sweep(directory)._replace(dtype=torch.float64)
    found = StreamedYardstick(directory, held_out, sweep).kl(cuts)
    yardstick = Yardstick(model.double(), held_out)
    want = [yardstick.kl(prune(model, *each)) for each in cuts]
    assert found == pytest.approx(want, rel=1e-6, abs=1e-9)
    assert found[0] == pytest.approx(0.0, abs=1e-9)
    assert min(found[1:]) > 1e-4


@pytest.mark.parametrize(("stream_bytes", "at_once"), [(70_000, 2), (1, 1)])
def test_as_many_are_ranked_at_once_as_memory_holds(parent, source, stream_bytes, at_once):
    directory = ModelDirectory(parent / "model")
    given = {"dtype": torch.float32, "stream_bytes": stream_bytes}
    sweep = ScoreSettings().sweep(directory)._replace(**given)
    held_out = [next(source(32, 2, 9, 0))] * 2  # 128 tokens, 48 channels: 24,576 bytes
    assert StreamedYardstick(directory, held_out, sweep).at_once == at_once


def test_pareto_keeps_what_nothing_beats_in_both(cut):
    spec = load(cut[0] / "model").spec
    candidate = Candidate(Shape.of(spec), spec, memory(spec, Workload()))
    given = [(0.3, 5.0), (0.1, 1.0), (0.2, 3.0), (0.25, 2.0), (0.4, 4.0)]
    ranked = [Ranked(candidate, kl, Throughput(speed, 1)) for kl, speed in given]
    assert [each.kl for each in pareto(ranked)] == [0.1, 0.2, 0.3]


def test_distillation_brings_the_child_nearer(parent, cut, source, tmp_path):
    settings = parse(DistillSettings, DISTILL)
    inputs = {"student": cut[0], "teacher": parent}
    metrics = distill(settings, inputs, tmp_path, source)
    assert metrics["steps"] == 8 + 4
    held_out = [next(source(32, 4, 9, 5))]
    yardstick = Yardstick(load(parent / "model"), held_out)
    after = yardstick.kl(load(tmp_path / "model"))
    assert after < 0.8 * yardstick.kl(load(cut[0] / "model"))
    lengths = [line["tokens"] for line in _steps(tmp_path)]
    assert [b - a for a, b in zip([0, *lengths], lengths, strict=False)] == [32] * 8 + [64] * 4


def _steps(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_student_that_is_its_teacher_stays(parent, source, tmp_path):
    settings = parse(DistillSettings, DISTILL, adamw={"weight_decay": 0.0, "epsilon": 1e-3})
    with native.off():  # which attends for the teacher only, and not to the last bit as torch does
        metrics = distill(settings, {"student": parent, "teacher": parent}, tmp_path, source)
    assert abs(metrics["loss"]) < 1e-6


def test_stored_words_of_the_teacher_train_as_well(parent, cut, source, tmp_path):
    inputs = {"student": cut[0], "teacher": parent}
    vocab_size = load(parent / "model").spec.vocab_size
    ways = {
        "beside": {},
        "int8": {"teacher_weights": "int8"},
        "all": {"teacher_top_k": vocab_size},
        "few": {"teacher_top_k": 8},
    }
    losses = {}
    for name, way in ways.items():
        settings = parse(DistillSettings, DISTILL, **way)
        losses[name] = distill(settings, inputs, tmp_path / name, source)["loss"]
    assert losses["all"] == pytest.approx(losses["beside"], rel=1e-3)
    assert 0 < abs(losses["int8"] / losses["beside"] - 1) < 0.05
    assert 0 < losses["few"] < losses["beside"]


def test_words_about_other_tokens_are_refused(parent, source, tmp_path):
    teacher = load(parent / "model")
    store(teacher, source(16, 2, 9, 0), 2, 4, tmp_path)
    taught = Taught(source(16, 2, 9, 0), tmp_path)
    assert next(taught).teacher.ids.shape == (32, 4)
    taught = Taught(source(16, 3, 9, 0), tmp_path)
    with pytest.raises(DataError, match="read other tokens"):
        next(taught)
    taught = Taught(source(16, 2, 9, 0), tmp_path / "nowhere")
    with pytest.raises(DataError, match="nothing readable of the teacher"):
        next(taught)
    with pytest.raises(ConfigError, match="top_k = 10000"):
        store(teacher, source(16, 2, 9, 0), 1, 10_000, tmp_path)


def test_the_losses_count_as_the_loop_does(parent, source, tmp_path):
    """Weight and tokens as the next-token loss; the teacher stays as it is."""
    student, teacher = load(parent / "model"), init_weights(load(parent / "model"), 8)
    batch = next(source(16, 2, 9, 0))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    store(teacher, source(16, 2, 9, 0), 1, 5, tmp_path)
    plain = next_token_loss(student, batch)
    outputs = [
        online_loss(teacher)(student, batch),
        stored_loss(student, next(Taught(source(16, 2, 9, 0), tmp_path))),
    ]
    for output in outputs:
        assert float(output.weight) == float(plain.weight)
        assert output.num_tokens == plain.num_tokens
        output.total.backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[name], t) for name, t in teacher.state_dict().items())


def test_vocabularies_must_match(parent):
    model = load(parent / "model")
    other = HybridLM(model.spec.model_copy(update={"vocab_size": 7}), device="meta")
    with pytest.raises(ConfigError, match="same vocabulary"):
        check_pair(model, other)


def test_lengths_rise(tmp_path):
    with pytest.raises(ConfigError, match="get longer"):
        parse(DistillSettings, DISTILL, phases=DISTILL["phases"][::-1])
