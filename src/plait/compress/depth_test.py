import itertools

import pytest
import torch

from plait.compress import depth as depth_module
from plait.compress import importance as importance_module
from plait.compress.cut import Cut
from plait.compress.depth import Rules
from plait.compress.importance import ScoreSettings, score
from plait.compress.prune import prune
from plait.compress.stream import logit_distances
from plait.core.errors import ConfigError
from plait.model.hf import save
from plait.model.spec import ModelSpec

SPEC = ModelSpec.preset("test", pattern="M-M*-M*")


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    monkeypatch.setattr(importance_module, "write_plots", lambda *_: None)


def tokens_of(spec, *shape, seed=5):
    return torch.randint(spec.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def without(model, layers):
    """The model without some layers, all widths kept."""
    cut = Cut.nothing(model.spec)
    kept = tuple(layer for layer in cut.layers if layer not in layers)
    tables = {
        name: {layer: value for layer, value in getattr(cut, name).items() if layer in kept}
        for name in ("feed_forward", "mamba_heads", "mamba_channels")
    }
    return prune(model, cut.model_copy(update={"layers": kept, **tables}), {})


@torch.no_grad()
def harm(model, layers, tokens, metric):
    """Distance of whole models in memory, by the definition."""
    expected, found = model(tokens), without(model, layers)(tokens)
    if metric == "mse":
        return (expected - found).square().mean().item()
    p, q = expected.log_softmax(-1), found.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


def measured(model, folder, tokens, **settings):
    save(model, folder / "parent")
    return score(folder / "parent", tokens, folder / "scores", ScoreSettings(**settings))


@pytest.mark.parametrize(
    ("metric", "stream_gib"),
    [("kl", 1.0), ("mse", 3 * 2 * 19 * 48 * 8 / 2**30)],  # all at once, three at once
)
def test_greedy_removal_equals_brute_force(random_model, tmp_path, metric, stream_gib):
    model, tokens = random_model(SPEC), tokens_of(SPEC, 2, 19)
    scores = measured(
        model,
        tmp_path,
        tokens,
        num_removals=2,
        depth_metric=metric,
        stream_gib=stream_gib,
        tokens_per_forward=19,
    )
    gone = []
    for removal in scores.removals:
        candidates = [layer for layer in range(7) if layer not in gone]
        expected = {c: harm(model, [*gone, c], tokens, metric) for c in candidates}
        assert removal.harms == pytest.approx(expected, rel=1e-9)
        assert removal.layer == min(expected, key=lambda c: expected[c])
        gone.append(removal.layer)
    # every candidate runs what is behind it; the shared stream stops at the last candidate
    assert scores.facts["depth_layer_passes"] == (21 + 6) + (15 + 5)
    num_sweeps = 2 if stream_gib == 1.0 else 3 + 2
    assert scores.facts["depth_head_passes"] == 7 + 6 + num_sweeps
    assert scores.layers(5) == tuple(layer for layer in range(7) if layer not in gone)


def test_two_layers_that_do_little_are_the_best_pair(random_model, tmp_path):
    model, tokens = random_model(SPEC), tokens_of(SPEC, 2, 19)
    with torch.no_grad():
        model.backbone.layers[2].mixer.out_proj.weight *= 0.02
        model.backbone.layers[4].mixer.down_proj.weight *= 0.05
    pairs = {pair: harm(model, pair, tokens, "mse") for pair in itertools.combinations(range(7), 2)}
    scores = measured(model, tmp_path, tokens, num_removals=2)
    removed = tuple(sorted(removal.layer for removal in scores.removals))
    assert removed == min(pairs, key=lambda pair: pairs[pair]) == (2, 4)


@pytest.mark.parametrize(("layer", "name"), [(2, "out_proj"), (3, "o_proj"), (4, "down_proj")])
def test_a_layer_without_output_goes_first_and_costs_nothing(random_model, tmp_path, layer, name):
    model = random_model(SPEC)
    with torch.no_grad():
        getattr(model.backbone.layers[layer].mixer, name).weight.zero_()
    # rows pass two at a time in either case, so that products are summed in the same order
    settings = {"num_removals": 1, "tokens_per_forward": 38}
    [removal] = measured(model, tmp_path, tokens_of(SPEC, 2, 19), **settings).removals
    assert removal.layer == layer
    assert removal.harms[layer] == 0.0
    assert min(harm for other, harm in removal.harms.items() if other != layer) > 1e-3


def test_protected_layers_stay(random_model, tmp_path):
    model, tokens = random_model(SPEC), tokens_of(SPEC, 1, 9)
    with torch.no_grad():
        for layer, name in ((0, "out_proj"), (3, "o_proj"), (6, "o_proj")):
            getattr(model.backbone.layers[layer].mixer, name).weight.zero_()
    rules = {"keep": {"*": 2, "-": 1}, "protect_ends": True}
    scores = measured(model, tmp_path, tokens, num_removals=3, **rules)
    removed = [SPEC.pattern[removal.layer] for removal in scores.removals]
    assert sorted(removed) == ["-", "M", "M"]
    assert {0, 3, 6}.isdisjoint(removal.layer for removal in scores.removals)


@pytest.mark.parametrize(
    ("rules", "number", "message"),
    [
        (Rules(), 7, "7 layers are to be removed, but only 6 may go"),
        (Rules({"M": 3, "*": 2, "-": 1}), 2, "only 1 may go"),
        (Rules({"*": 2}, protect_ends=True), 5, "only 4 may go.* and the first and last"),
        (Rules({"x": 1}), 1, r"keep names \['x'\]; kinds of layers are"),
    ],
)
def test_more_removals_than_the_rules_allow_are_refused(rules, number, message):
    with pytest.raises(ConfigError, match=message):
        rules.check(SPEC, number)
    if "only" in message:
        rules.check(SPEC, number - 1)


def test_an_interrupted_search_goes_on_behind_its_last_group(random_model, tmp_path, monkeypatch):
    model, tokens = random_model(SPEC), tokens_of(SPEC, 2, 9)
    settings = {"num_removals": 3, "stream_gib": 2 * 2 * 9 * 48 * 8 / 2**30}
    whole = measured(model, tmp_path / "whole", tokens, **settings)
    calls = []

    def watched(*arguments):
        calls.append(len(arguments[1]))
        if len(calls) in (3, 7):
            raise KeyboardInterrupt
        return logit_distances(*arguments)

    monkeypatch.setattr(depth_module, "logit_distances", watched)
    save(model, tmp_path / "parent")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            score(tmp_path / "parent", tokens, tmp_path / "scores", ScoreSettings(**settings))
    found = score(tmp_path / "parent", tokens, tmp_path / "scores", ScoreSettings(**settings))
    assert found.removals == whole.removals
    # 7, 6 and 5 candidates two at a time; the third call and the seventh are made twice
    assert calls == [2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 1]


@pytest.mark.parametrize("block", [1, 7, 97])
def test_divergence_does_not_depend_on_blocks_of_the_vocabulary(block):
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)
    others = [hidden * 1.1, torch.randn(2, 5, 8, generator=generator, dtype=torch.float64), hidden]
    head = torch.randn(97, 8, generator=generator, dtype=torch.float64) * 30
    p = (hidden @ head.T).log_softmax(-1)
    q = [(other @ head.T).log_softmax(-1) for other in others]
    want = [(p.exp() * (p - each)).sum(-1).mean().item() for each in q]
    found = logit_distances(hidden, others, head.split(block), "kl")
    assert found == pytest.approx(want, rel=1e-10, abs=1e-12)
    assert found[1] > 1.0


def test_distances_of_narrower_models_at_weighted_positions():
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(1, 6, 8, generator=generator, dtype=torch.float64)
    head = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    columns = [torch.tensor([0, 2, 3, 7]), torch.arange(8)]
    others = [hidden[..., kept] * 1.5 for kept in columns]
    weights = torch.tensor([[1.0, 0.0, 2.0, 0.5, 0.0, 1.0]])
    expected = hidden @ head.T
    logits = [other @ head[:, kept].T for other, kept in zip(others, columns, strict=True)]
    p = expected.log_softmax(-1)
    each = {
        "mse": [(expected - found).square().mean(-1) for found in logits],
        "kl": [(p.exp() * (p - found.log_softmax(-1))).sum(-1) for found in logits],
    }
    for metric, values in each.items():
        want = [float((value * weights).sum() / weights.sum()) for value in values]
        given = {"columns": columns, "weights": weights}
        found = logit_distances(hidden, others, head.split(13), metric, **given)
        assert found == pytest.approx(want, rel=1e-10)
