import json

import pytest
import torch

from plait.compress import importance as importance_module
from plait.compress.cut import Shape
from plait.compress.importance import ScoreSettings, score
from plait.compress.scores import FINAL_NORM, Scores, gated_norm_name, norm_name
from plait.core.errors import CheckpointError, ConfigError, DataError
from plait.model.hf import save
from plait.model.hf_stream import ModelDirectory
from plait.model.spec import ModelSpec

SPEC = ModelSpec.preset("test")
WIDE = ModelSpec.preset(
    "test", pattern="MM-*", mamba_num_heads=16, mamba_head_dim=80, num_groups=8, use_bias=True
)


def tokens_of(spec, *shape, seed=5):
    return torch.randint(spec.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def no_plots(monkeypatch):
    monkeypatch.setattr(importance_module, "write_plots", lambda *_: None)


@pytest.fixture
def parent(random_model, tmp_path):
    save(random_model(SPEC), tmp_path / "parent")
    return tmp_path / "parent"


# ---- what is measured ----


def naive_scores(model, tokens):
    """The same from one forward of the whole model in memory, by the formulas."""
    spec, seen = model.spec, {}

    def watch(module, name):
        def see(_, inputs, output):
            seen[f"{name}.in"], seen[f"{name}.out"] = inputs[0], output

        module.register_forward_hook(see)

    for index, layer in enumerate(model.backbone.layers):
        watch(layer.norm, norm_name(index))
        for name in ("in_proj", "out_proj", "o_proj"):
            if hasattr(layer.mixer, name):
                watch(getattr(layer.mixer, name), f"{index}.{name}")
    watch(model.backbone.norm_f, FINAL_NORM)
    with torch.no_grad():
        model(tokens)

    def aggregate(x):
        return x.abs().mean(1).square().sum(0).sqrt()

    def moments(x, groups=1):
        x = x.reshape(-1, groups, x.shape[-1] // groups)
        return (x**2 / (x.square().mean(-1, keepdim=True) + spec.norm_eps)).mean(0).flatten()

    found = {}
    for name in [*(norm_name(i) for i in range(spec.num_layers)), FINAL_NORM]:
        found[f"embedding.{name}"] = aggregate(seen[f"{name}.out"])
        found[f"moments.{name}"] = moments(seen[f"{name}.in"])
    for index, letter in enumerate(spec.pattern):
        mixer = model.backbone.layers[index].mixer
        if letter == "-":
            h = mixer.up_proj(seen[f"{norm_name(index)}.out"]).detach()
            found[f"feed_forward.{index}"] = aggregate(h.clamp(min=0) ** 2)
        elif letter == "*":
            heads = seen[f"{index}.o_proj.in"].unflatten(-1, (spec.num_attention_heads, -1))
            found[f"attention.{index}"] = aggregate(heads.norm(dim=-1))
        else:
            x = seen[f"{index}.in_proj.out"].split(
                [spec.d_inner, spec.d_inner, spec.conv_dim - spec.d_inner, spec.mamba_num_heads], -1
            )[1]
            heads = x.unflatten(-1, (spec.mamba_num_heads, spec.mamba_head_dim))
            found[f"mamba.{index}"] = aggregate(heads)
            gated = seen[f"{index}.out_proj.in"] / mixer.norm.weight
            found[f"moments.{gated_norm_name(index)}"] = gated.square().mean((0, 1)).detach()
    return found


@pytest.mark.parametrize("spec", [SPEC, WIDE], ids=["all kinds", "wide"])
def test_scores_equal_those_of_one_forward_in_memory(random_model, tmp_path, spec, no_plots):
    model, tokens = random_model(spec), tokens_of(spec, 5, 21)
    save(model, tmp_path / "parent")
    settings = ScoreSettings(tokens_per_forward=50)
    scores = score(tmp_path / "parent", tokens, tmp_path / "scores", settings)
    expected = naive_scores(model, tokens)
    for field in ("embedding", "feed_forward", "mamba", "attention", "moments"):
        for key, found in getattr(scores, field).items():
            want = expected.pop(f"{field}.{key}")
            torch.testing.assert_close(found.double(), want, rtol=1e-6, atol=1e-12)
    assert not expected
    assert scores.facts["layer_passes"] == spec.num_layers


def test_corrections_keep_the_mean_square_of_what_is_kept(random_model, tmp_path, no_plots):
    """In closed form from stored moments; close to the mean ratio of root mean squares."""
    model, tokens = random_model(SPEC), tokens_of(SPEC, 4, 30)
    save(model, tmp_path / "parent")
    scores = score(tmp_path / "parent", tokens, tmp_path / "scores", ScoreSettings())
    cut = scores.cut(Shape.of(SPEC).model_copy(update={"hidden_size": 20}), SPEC)
    seen = []
    model.backbone.norm_f.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        model(tokens)
    everything = seen[0].square().mean(-1) + SPEC.norm_eps
    kept = seen[0][..., list(cut.embedding)].square().mean(-1) + SPEC.norm_eps
    [factor] = scores.corrections(cut)[FINAL_NORM].tolist()
    assert factor == pytest.approx((kept / everything).mean().sqrt().item(), rel=1e-9)
    assert factor == pytest.approx((kept / everything).sqrt().mean().item(), rel=0.03)


@torch.no_grad()
def plant(model, axis):
    """Make a random part of the channels louder; return it as the cut that must be found."""
    spec, generator = model.spec, torch.Generator().manual_seed(3)

    def pick(size, number):
        return torch.randperm(size, generator=generator)[:number].sort().values

    kept = {}
    if axis == "embedding":
        kept = pick(spec.hidden_size, 20)
        model.backbone.embeddings.weight[:, kept] *= 6
        for layer in model.backbone.layers:
            for name in ("out_proj", "o_proj", "down_proj"):
                if hasattr(layer.mixer, name):
                    getattr(layer.mixer, name).weight[kept] *= 6
        return tuple(kept.tolist())
    planted = {}
    for index, letter in enumerate(spec.pattern):
        mixer = model.backbone.layers[index].mixer
        if axis == "feed_forward" and letter == "-":
            planted[index] = pick(spec.intermediate_size, 30)
            mixer.up_proj.weight[planted[index]] *= 6
        if letter == "M" and axis.startswith("mamba"):
            rows = torch.arange(spec.d_inner).view(spec.mamba_num_heads, spec.mamba_head_dim)
            if axis == "mamba_heads":
                per_group = spec.mamba_num_heads // spec.num_groups
                starts = torch.arange(spec.num_groups) * per_group
                heads = [start + pick(per_group, per_group // 2) for start in starts]
                planted[index] = torch.cat(heads)
                rows = rows[planted[index]].flatten()
            else:
                planted[index] = pick(spec.mamba_head_dim, 6)
                rows = rows[:, planted[index]].flatten()
            mixer.in_proj.weight[spec.d_inner + rows] *= 6
    return {index: tuple(kept.tolist()) for index, kept in planted.items()}


@pytest.mark.parametrize("axis", ["embedding", "feed_forward", "mamba_heads", "mamba_channels"])
@pytest.mark.parametrize("spec", [SPEC, WIDE], ids=["all kinds", "wide"])
def test_planted_importance_is_found(random_model, tmp_path, spec, axis, no_plots):
    model = random_model(spec)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("norm.weight", "norm_f.weight")) and "mixer" not in name:
                weight.fill_(1.0)
    planted = plant(model, axis)
    save(model, tmp_path / "parent")
    tokens = tokens_of(spec, 4, 40)
    scores = score(tmp_path / "parent", tokens, tmp_path / "scores", ScoreSettings())
    num_heads = spec.num_groups * (spec.mamba_num_heads // spec.num_groups // 2)
    size = {
        "embedding": ("hidden_size", 20),
        "feed_forward": ("intermediate_size", 30),
        "mamba_heads": ("mamba_num_heads", num_heads),
        "mamba_channels": ("mamba_head_dim", 6),
    }[axis]
    shape = Shape.of(spec).model_copy(update=dict([size]))
    assert getattr(scores.cut(shape, spec), axis) == planted
    assert getattr(scores.shuffled(0).cut(shape, spec), axis) != planted


def scores_with_mamba(values):
    """Scores of the test preset whose Mamba layers have these (6, 10)."""
    ones = {norm_name(i): torch.ones(48) for i in range(6)} | {FINAL_NORM: torch.ones(48)}
    feed = {i: torch.ones(80) for i in (1, 4)}
    return Scores(SPEC, ones, feed, dict.fromkeys((0, 2, 5), values), {3: torch.ones(4)}, {})


def test_heads_are_ranked_inside_their_group_only():
    values = torch.ones(6, 10)
    values[:3] = 100.0  # every head of group 0 is above every head of group 1
    values[4] = 2.0
    spec = SPEC.model_copy(update={"pattern": "M-M*-M"})
    shape = Shape.of(spec).model_copy(update={"mamba_num_heads": 2})
    assert scores_with_mamba(values).cut(shape, spec).mamba_heads[0] == (0, 4)


def test_heads_are_ranked_by_the_channels_that_stay():
    values = torch.full((6, 10), 1.0)
    values[:, :2] = 10.0  # two loud channels
    values[0, 2:] = 6.0  # a head that is loud in the others
    values[1, :2] = 14.0
    scores = scores_with_mamba(values)
    both = Shape.of(SPEC).model_copy(update={"mamba_num_heads": 2, "mamba_head_dim": 2})
    heads_only = Shape.of(SPEC).model_copy(update={"mamba_num_heads": 2})
    cut = scores.cut(both, SPEC)
    assert (cut.mamba_channels[0], cut.mamba_heads[0]) == ((0, 1), (1, 3))
    assert values[0].norm() > values[1].norm()
    assert scores.cut(heads_only, SPEC).mamba_heads[0] == (0, 3)


# ---- the artifact ----


def test_scores_are_an_artifact_with_plots(parent, tmp_path):
    tokens = tokens_of(SPEC, 3, 20)
    scores = score(parent, tokens, tmp_path / "scores", ScoreSettings(num_removals=2))
    back = Scores.read(tmp_path / "scores")
    assert back.spec == scores.spec == SPEC
    assert back.removals == scores.removals
    shape = Shape(
        layers=scores.layers(4),
        hidden_size=30,
        intermediate_size=40,
        mamba_num_heads=4,
        mamba_head_dim=5,
    )
    cut = scores.cut(shape, SPEC)
    assert back.cut(shape, SPEC) == cut
    for name, factor in scores.corrections(cut).items():
        assert torch.equal(back.corrections(cut)[name], factor)
    plots = sorted(file.stem for file in (tmp_path / "scores").glob("*.svg"))
    assert plots == [
        "attention",
        "depth",
        "embedding",
        "feed_forward",
        "mamba_channels",
        "mamba_heads",
    ]
    depth = (tmp_path / "scores" / "depth.svg").read_text()
    assert depth.startswith("<svg")
    assert "xmlns" in depth
    assert "--ink:" in depth


def test_what_is_no_artifact_is_refused(parent, tmp_path):
    with pytest.raises(DataError, match="no finished scores here"):
        Scores.read(tmp_path)
    scores = score(parent, tokens_of(SPEC, 1, 9), tmp_path / "scores", ScoreSettings())
    with pytest.raises(ConfigError, match="depth of 4 layers is asked for, the scores can"):
        scores.layers(4)
    with pytest.raises(ConfigError, match="measured on a parent of another shape"):
        scores.cut(Shape.of(WIDE), WIDE)


# ---- interrupted and continued ----


class Stop(Exception):
    pass


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.glob("scores.*")}


def test_an_interrupted_run_goes_on_at_its_layer(parent, tmp_path, monkeypatch, no_plots):
    tokens, settings = tokens_of(SPEC, 3, 20), ScoreSettings()
    score(parent, tokens, tmp_path / "whole", settings)
    read = []
    layer = ModelDirectory.layer

    def watched(self, index, *rest):
        if index == 3 and len(read) < 4:
            raise Stop
        read.append(index)
        return layer(self, index, *rest)

    monkeypatch.setattr(ModelDirectory, "layer", watched)
    with pytest.raises(Stop):
        score(parent, tokens, tmp_path / "scores", settings)
    assert not (tmp_path / "scores" / "scores.json").exists()
    read.append(-1)
    score(parent, tokens, tmp_path / "scores", settings)
    assert read == [0, 1, 2, -1, 3, 4, 5]
    assert files_of(tmp_path / "scores") == files_of(tmp_path / "whole")
    score(parent, tokens, tmp_path / "scores", settings)
    assert len(read) == 7
    assert not (tmp_path / "scores" / "stream.safetensors").exists()


def test_more_removals_can_be_asked_of_finished_scores(parent, tmp_path, no_plots):
    tokens = tokens_of(SPEC, 3, 20)
    whole = score(parent, tokens, tmp_path / "whole", ScoreSettings(num_removals=3))
    for number in (0, 2, 1, 3):
        scores = score(parent, tokens, tmp_path / "scores", ScoreSettings(num_removals=number))
    assert scores.removals == whole.removals
    assert scores.facts["depth_layer_passes"] == whole.facts["depth_layer_passes"]
    found, expected = (files_of(tmp_path / name) for name in ("scores", "whole"))
    assert found["scores.safetensors"] == expected["scores.safetensors"]


def test_a_run_that_was_killed_at_its_first_file_is_continued(parent, tmp_path, no_plots):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / ".work.json.partial").write_text('{"par')
    score(parent, tokens_of(SPEC, 2, 9), tmp_path / "scores", ScoreSettings())
    assert Scores.read(tmp_path / "scores").spec == SPEC


def test_a_folder_of_other_scores_is_not_continued(parent, tmp_path, no_plots):
    score(parent, tokens_of(SPEC, 2, 9), tmp_path / "scores", ScoreSettings())
    changed = ScoreSettings(depth_metric="kl", keep={"*": 1})
    with pytest.raises(ConfigError, match="scores of something else, tokens changed since"):
        score(parent, tokens_of(SPEC, 2, 10), tmp_path / "scores", ScoreSettings())
    with pytest.raises(ConfigError, match="something else, depth_metric, keep changed since"):
        score(parent, tokens_of(SPEC, 2, 9), tmp_path / "scores", changed)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not empty and holds no scores"):
        score(parent, tokens_of(SPEC, 2, 9), tmp_path / "home", ScoreSettings())


# ---- bad input ----


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(0, 20, dtype=torch.int64), "0 calibration rows of 20 tokens are too few"),
        (torch.zeros(3, 1, dtype=torch.int64), "3 calibration rows of 1 tokens are too few"),
        (torch.full((1, 5), 97), "reach from 97 to 97, the parent's vocabulary from 0 to 96"),
    ],
)
def test_calibration_that_cannot_be_used_is_refused(parent, tmp_path, tokens, message):
    with pytest.raises(DataError, match=message):
        score(parent, tokens, tmp_path / "scores", ScoreSettings())
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("device", "gpu"), ("device", "cuda:x"), ("stream_gib", float("inf"))]
)
def test_settings_that_cannot_work_are_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        ScoreSettings.parse({key: value}, "recipe")


def test_a_device_that_is_not_there_is_refused_before_work(parent, tmp_path):
    settings = ScoreSettings.parse({"device": "cuda:99"}, "recipe")  # a recipe may be for elsewhere
    with pytest.raises(ConfigError, match=r"device = 'cuda:99': torch sees \d+ GPUs here"):
        score(parent, tokens_of(SPEC, 2, 9), tmp_path / "scores", settings)
    assert not (tmp_path / "scores").exists()


def test_parents_that_cannot_be_scored_are_refused(random_model, parent, tmp_path):
    config = json.loads((parent / "config.json").read_text())
    (parent / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(ConfigError, match="tie_word_embeddings is True; only False"):
        score(parent, tokens_of(SPEC, 2, 9), tmp_path / "scores", ScoreSettings())
    (parent / "config.json").write_text(json.dumps(config | {"intermediate_size": 81}))
    with pytest.raises(CheckpointError, match=r"has shape \(48, 80\), config.json asks for"):
        score(parent, tokens_of(SPEC, 2, 9), tmp_path / "scores", ScoreSettings())
    broken = random_model(SPEC)
    with torch.no_grad():
        broken.backbone.layers[2].norm.weight[3] = float("nan")
    save(broken, tmp_path / "broken")
    with pytest.raises(CheckpointError, match="hidden states are not finite"):
        score(tmp_path / "broken", tokens_of(SPEC, 2, 9), tmp_path / "scores2", ScoreSettings())


# ---- where rows come from ----
