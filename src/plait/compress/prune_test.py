import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from plait.compress import importance as importance_module
from plait.compress import prune as prune_module
from plait.compress.cut import CUT_FILE, Cut, Shape
from plait.compress.importance import ScoreSettings, score
from plait.compress.prune import prune, prune_directory
from plait.core.errors import CheckpointError, ConfigError
from plait.model.hf import load, save
from plait.model.spec import ModelSpec

NO_EPS = {"norm_eps": 1e-40}
SMALL = {"pattern": "M-*M-"}
# The released Mamba shape in small: heads of 80, eight groups; biases where there may be any.
WIDE = {
    "pattern": "MM-*",
    "mamba_num_heads": 16,
    "mamba_head_dim": 80,
    "num_groups": 8,
    "use_bias": True,
    "mlp_bias": True,
}
AXES = {
    "embedding": {"hidden_size": 31},
    "feed-forward": {"intermediate_size": 57},
    "heads": {"mamba_num_heads": 0.5},
    "head channels": {"mamba_head_dim": 7},
    "all": {
        "hidden_size": 31,
        "intermediate_size": 57,
        "mamba_num_heads": 0.5,
        "mamba_head_dim": 7,
    },
}


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    monkeypatch.setattr(importance_module, "write_plots", lambda *_: None)


def tokens_of(spec, *shape, seed=5):
    return torch.randint(spec.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def shape_for(parent, axis):
    """The wanted widths of a parent; 0.5 of the heads are one or more whole heads per group."""
    widths = dict(AXES[axis])
    if "mamba_num_heads" in widths:
        per_group = parent.mamba_num_heads // parent.num_groups
        widths["mamba_num_heads"] = parent.num_groups * max(1, per_group // 2)
    return Shape.of(parent).model_copy(update=widths)


@torch.no_grad()
def kill(model, shape, seed=1):
    """Make all but a random part of the channels dead: nothing enters them, nothing leaves."""
    spec = model.spec
    generator = torch.Generator().manual_seed(seed)

    def dead(size, kept):
        return torch.randperm(size, generator=generator)[kept:]

    gone = dead(spec.hidden_size, shape.hidden_size)
    model.backbone.embeddings.weight[:, gone] = 0
    per_group = spec.mamba_num_heads // spec.num_groups
    for layer, letter in zip(model.backbone.layers, spec.pattern, strict=True):
        mixer = layer.mixer
        last = {"M": "out_proj", "*": "o_proj", "-": "down_proj"}[letter]
        for weight in getattr(mixer, last).parameters():
            weight[gone] = 0
        if letter == "-":
            neurons = dead(spec.intermediate_size, shape.intermediate_size)
            for weight in mixer.up_proj.parameters():
                weight[neurons] = 0
        if letter == "M":
            live = torch.ones(spec.num_groups, per_group, spec.mamba_head_dim)
            for group in live:
                group[dead(per_group, shape.mamba_num_heads // spec.num_groups)] = 0
            live[:, :, dead(spec.mamba_head_dim, shape.mamba_head_dim)] = 0
            inner = (live.flatten() == 0).nonzero().flatten()
            for weight in mixer.in_proj.parameters():
                weight[inner] = 0  # the gate
                weight[spec.d_inner + inner] = 0  # what enters
    return model


def measured(model, folder, shape):
    """Score a model from disk; return its cut to a shape, and the corrections."""
    save(model, folder / "parent")
    scores = score(
        folder / "parent", tokens_of(model.spec, 3, 17), folder / "scores", ScoreSettings()
    )
    cut = scores.cut(shape, model.spec)
    return cut, scores.corrections(cut)


def relative_error(child, parent):
    tokens = tokens_of(parent.spec, 2, 41, seed=8)
    with torch.no_grad():
        expected = parent(tokens)
        return float((child(tokens) - expected).norm() / expected.norm())


# ---- (a) channels that do nothing ----


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("family", [SMALL, WIDE], ids=["small", "wide"])
def test_cutting_dead_channels_changes_nothing(random_model, tmp_path, family, axis):
    spec = ModelSpec.preset("test", **family, **NO_EPS)
    shape = shape_for(spec, axis)
    parent = kill(random_model(spec), shape)
    cut, corrections = measured(parent, tmp_path, shape)
    assert cut.spec(spec).num_parameters < spec.num_parameters
    assert relative_error(prune(parent, cut, corrections), parent) <= 1e-9
    if axis != "feed-forward":
        assert relative_error(prune(parent, cut, {}), parent) > 0.02
    for name, factors in corrections.items():
        inside = name.endswith("mixer.norm.weight")
        kept = shape.mamba_num_heads * shape.mamba_head_dim if inside else shape.hidden_size
        ratio = (spec.d_inner if inside else spec.hidden_size) / kept
        assert factors.shape == (spec.num_groups if inside else 1,)
        torch.testing.assert_close(
            factors, torch.full_like(factors, ratio**0.5), rtol=1e-12, atol=0
        )


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("family", [SMALL, WIDE], ids=["small", "wide"])
def test_the_real_epsilon_costs_little(random_model, tmp_path, family, axis):
    """What eps adds differs by token and cannot be folded into a weight.

    It is felt where activations are as small as sqrt(eps), as the gated ones of `wide` are.
    """
    spec = ModelSpec.preset("test", **family)
    shape = shape_for(spec, axis)
    parent = kill(random_model(spec), shape)
    cut, corrections = measured(parent, tmp_path, shape)
    error = relative_error(prune(parent, cut, corrections), parent)
    if axis == "feed-forward":
        assert error <= 1e-9
    else:
        assert error <= 0.1 * relative_error(prune(parent, cut, {}), parent)


def test_weak_channels_need_the_correction_too(random_model, tmp_path):
    spec = ModelSpec.preset("test", **SMALL)
    shape = shape_for(spec, "embedding")
    parent, dead = random_model(spec), kill(random_model(spec), shape)
    with torch.no_grad():
        for weight, target in zip(parent.parameters(), dead.parameters(), strict=True):
            weight.lerp_(target, 0.95)
    cut, corrections = measured(parent, tmp_path, shape)
    assert cut.embedding == measured(dead, tmp_path / "dead", shape)[0].embedding
    corrected = relative_error(prune(parent, cut, corrections), parent)
    assert corrected < 0.5 * relative_error(prune(parent, cut, {}), parent)


def test_cutting_nothing_changes_no_bit(random_model):
    spec = ModelSpec.preset("test", **WIDE)
    parent = random_model(spec, torch.float32)
    child = prune(parent, Cut.nothing(spec), {})
    for name, weight in parent.state_dict().items():
        assert torch.equal(child.state_dict()[name], weight), name
        assert child.state_dict()[name].data_ptr() != weight.data_ptr()


# ---- (b) what is written ----


def analytic_shapes(spec):
    """Shape of every tensor, from the published layout."""
    D, F, V = spec.hidden_size, spec.intermediate_size, spec.vocab_size
    H, P, GN = spec.mamba_num_heads, spec.mamba_head_dim, spec.num_groups * spec.state_size
    q, kv = (
        n * spec.attention_head_dim for n in (spec.num_attention_heads, spec.num_key_value_heads)
    )
    kinds = {
        "M": {
            "in_proj.weight": (2 * H * P + 2 * GN + H, D),
            "conv1d.weight": (H * P + 2 * GN, 1, 4),
            "conv1d.bias": (H * P + 2 * GN,),
            "A_log": (H,),
            "D": (H,),
            "dt_bias": (H,),
            "norm.weight": (H * P,),
            "out_proj.weight": (D, H * P),
        },
        "*": {
            "q_proj.weight": (q, D),
            "k_proj.weight": (kv, D),
            "v_proj.weight": (kv, D),
            "o_proj.weight": (D, q),
        },
        "-": {"up_proj.weight": (F, D), "down_proj.weight": (D, F)},
    }
    shapes = {
        "backbone.embeddings.weight": (V, D),
        "backbone.norm_f.weight": (D,),
        "lm_head.weight": (V, D),
    }
    for index, letter in enumerate(spec.pattern):
        shapes[f"backbone.layers.{index}.norm.weight"] = (D,)
        for name, shape in kinds[letter].items():
            shapes[f"backbone.layers.{index}.mixer.{name}"] = shape
    return shapes


@pytest.fixture
def parent_on_disk(random_model, tmp_path):
    """A parent in bfloat16 with float32 decays and a tokenizer, and a cut of it on every axis."""
    spec = ModelSpec.preset("test")
    model = random_model(spec, torch.bfloat16)
    for index in (0, 5):
        mixer = model.backbone.layers[index].mixer
        mixer.A_log = torch.nn.Parameter(mixer.A_log.float() + 0.123)
    directory = tmp_path / "parent"
    save(model, directory, max_shard_bytes=40_000)
    (directory / "tokenizer.json").write_text("{}")
    cut = Cut(
        layers=(0, 1, 3, 5),
        embedding=tuple(range(1, 48, 2)),
        feed_forward={1: tuple(range(3, 80, 3))},
        mamba_heads={0: (0, 2, 3, 4), 5: (1, 2, 4, 5)},
        mamba_channels={0: (0, 1, 5, 9), 5: (2, 3, 4, 7)},
    )
    factors = {"backbone.layers.3.norm.weight": torch.tensor([1.25], dtype=torch.float64)}
    return directory, cut, factors


def digests(directory):
    files = sorted(directory.iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_written_child_is_the_one_in_memory(parent_on_disk, tmp_path):
    directory, cut, factors = parent_on_disk
    before = digests(directory)
    out = tmp_path / "child"
    spec = prune_directory(directory, cut, out, factors, max_shard_bytes=20_000)
    assert digests(directory) == before
    assert len(list(out.glob("model-*.safetensors"))) > 1
    found = {}
    for file in out.glob("*.safetensors"):
        found |= load_file(file)
    assert {name: tuple(t.shape) for name, t in found.items()} == analytic_shapes(spec)
    assert sum(t.numel() for t in found.values()) == spec.num_parameters
    child = prune(load(directory), cut, factors)
    for name, tensor in child.state_dict().items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert found["backbone.layers.0.mixer.A_log"].dtype == torch.float32
    parent = load(directory).state_dict()
    norm = (parent["backbone.layers.3.norm.weight"][1::2].double() * 1.25).bfloat16()
    assert torch.equal(found["backbone.layers.2.norm.weight"], norm)
    assert (out / "tokenizer.json").read_text() == "{}"
    assert Cut.read(out / CUT_FILE) == cut
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())


def test_an_output_directory_with_something_in_it_is_refused(parent_on_disk, tmp_path):
    directory, cut, factors = parent_on_disk
    out = tmp_path / "child"
    out.mkdir()
    (out / "thesis.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"child: is not empty; give a new directory"):
        prune_directory(directory, cut, out, factors)
    with pytest.raises(ConfigError, match=r"parent: is not empty"):
        prune_directory(directory, cut, directory, factors)
    assert (out / "thesis.txt").read_text() == "dear"


def test_interrupted_writing_leaves_no_child(parent_on_disk, tmp_path, monkeypatch):
    directory, cut, factors = parent_on_disk
    out = tmp_path / "child"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(prune_module, "check_written", stop)
        with pytest.raises(KeyboardInterrupt):
            prune_directory(directory, cut, out, factors)
    assert not out.exists()
    prune_directory(directory, cut, out, factors)
    assert load(out).spec == cut.spec(load(directory).spec)


def test_a_child_that_is_not_what_was_cut_is_not_kept(parent_on_disk, tmp_path, monkeypatch):
    directory, cut, factors = parent_on_disk

    def other(model, cut, _):
        return prune(model, cut, {})

    monkeypatch.setattr(prune_module, "prune", other)
    with pytest.raises(CheckpointError, match="logits of the written child differ by"):
        prune_directory(directory, cut, tmp_path / "child", factors)
    assert not (tmp_path / "child").exists()


def test_parents_that_cannot_be_cut_are_refused(parent_on_disk, tmp_path):
    directory, cut, factors = parent_on_disk
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(ConfigError, match="tie_word_embeddings is True; only False"):
        prune_directory(directory, cut, tmp_path / "child", factors)
    (directory / "config.json").write_text(json.dumps(config))
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    del index["weight_map"]["backbone.layers.2.norm.weight"]
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"layers.2.norm.weight of shape \(48,\) not found"):
        prune_directory(directory, cut, tmp_path / "child", factors)
    assert not (tmp_path / "child").exists()


# ---- (e) groups may stand in any order ----


@torch.no_grad()
def permute_groups(model, order):
    """Move whole groups of heads, with their B and C, to other places."""
    spec = model.spec
    H, P, G, N = spec.mamba_num_heads, spec.mamba_head_dim, spec.num_groups, spec.state_size

    def move(start, width):
        return start + torch.arange(G * width).view(G, width)[order].flatten()

    inner, heads, shared = H * P, H // G, G * N
    conv = torch.cat([move(0, heads * P), move(inner, N), move(inner + shared, N)])
    rows = torch.cat([move(0, heads * P), inner + conv, move(2 * inner + 2 * shared, heads)])
    for layer, letter in zip(model.backbone.layers, spec.pattern, strict=True):
        if letter == "M":
            mixer = layer.mixer
            for weight in mixer.in_proj.parameters():
                weight.copy_(weight[rows])
            for weight in mixer.conv1d.parameters():
                weight.copy_(weight[conv])
            for weight in (mixer.A_log, mixer.D, mixer.dt_bias):
                weight.copy_(weight[move(0, heads)])
            mixer.norm.weight.copy_(mixer.norm.weight[move(0, heads * P)])
            mixer.out_proj.weight.copy_(mixer.out_proj.weight[:, move(0, heads * P)])
    return model


@pytest.mark.parametrize("family", [SMALL, WIDE], ids=["small", "wide"])
def test_the_order_of_groups_does_not_matter(random_model, tmp_path, family):
    spec = ModelSpec.preset("test", **family)
    order = torch.arange(spec.num_groups).roll(1)
    parent, moved = random_model(spec), permute_groups(random_model(spec), order)
    assert not torch.equal(
        parent.state_dict()["backbone.layers.0.mixer.A_log"],
        moved.state_dict()["backbone.layers.0.mixer.A_log"],
    )
    assert relative_error(moved, parent) <= 1e-12
    shape = shape_for(spec, "all")
    child = prune(parent, *measured(parent, tmp_path / "a", shape))
    moved_child = prune(moved, *measured(moved, tmp_path / "b", shape))
    assert relative_error(moved_child, child) <= 1e-9


# ---- (g) elsewhere ----


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("family", [{}, WIDE | {"use_bias": False, "mlp_bias": False}])
def test_transformers_computes_the_childs_logits(random_model, tmp_path, family):
    from transformers import AutoModelForCausalLM

    spec = ModelSpec.preset("test", **family)
    parent = random_model(spec, torch.float32)
    shape = shape_for(spec, "all").model_copy(update={"layers": (0, 2, 3)})
    cut, corrections = measured(parent, tmp_path, shape)
    prune_directory(tmp_path / "parent", cut, tmp_path / "child", corrections)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "child", dtype=torch.float32).eval()
    for layer in theirs.model.layers:
        if hasattr(layer.mixer, "time_step_limit"):
            # It clamps at time_step_min instead of the configured limit.
            layer.mixer.time_step_limit = tuple(theirs.config.time_step_limit)
    tokens = tokens_of(spec, 2, 133)
    with torch.no_grad():
        got, want = load(tmp_path / "child")(tokens), theirs(tokens).logits
    assert want.std() > 0.3
    assert (got - want).abs().max() <= 1e-4
    with safe_open(tmp_path / "child" / "model.safetensors", "pt") as file:
        count = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert sum(p.numel() for p in theirs.parameters()) == count == cut.spec(spec).num_parameters
