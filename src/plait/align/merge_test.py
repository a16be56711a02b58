import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from plait.align.merge import SweepPoint, best, kept, merge, sweep
from plait.align.reward import RewardModel, load_reward_model, save_reward_model
from plait.core.errors import CheckpointError, ConfigError
from plait.model.hf import load, save
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec

SPEC = ModelSpec.preset("test", vocab_size=330)


@pytest.fixture(scope="module")
def two(base_model, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "model"
    save(init_weights(HybridLM(SPEC), 1), other, tokenizer_from=base_model)
    return base_model, other


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sharded", [False, True])
def test_every_tensor_lies_between_those_of_its_parents(two, tmp_path, alpha, sharded):
    a, b = two
    if sharded:  # the second model's tensors may lie in other files than the first's
        b = tmp_path / "sharded"
        save(load(two[1]), b, tokenizer_from=a, max_shard_bytes=60_000)
        a, b = b, a
        alpha = 1 - alpha
    merge(a, b, alpha, tmp_path / "out")
    got, x, y = (load(path).state_dict() for path in (tmp_path / "out", a, b))
    for name, tensor in got.items():
        want = (1 - alpha) * x[name].double() + alpha * y[name].double()
        torch.testing.assert_close(tensor.double(), want, rtol=1e-6, atol=1e-7)
        if alpha in (0.0, 1.0):
            assert torch.equal(tensor, (y if alpha else x)[name])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in a.iterdir()}


def test_a_merge_with_itself_is_itself_and_bfloat16_is_rounded_once(two, tmp_path):
    for number, path in enumerate(two):
        save(load(path, dtype=torch.bfloat16), tmp_path / str(number), tokenizer_from=two[0])
    merge(tmp_path / "0", tmp_path / "0", 0.37, tmp_path / "same")
    merge(tmp_path / "0", tmp_path / "1", 0.37, tmp_path / "mixed")
    one, other, same, mixed = (
        load_file(tmp_path / name / "model.safetensors") for name in ("0", "1", "same", "mixed")
    )
    for name in one:
        assert torch.equal(same[name], one[name])
        exact = 0.63 * one[name].double() + 0.37 * other[name].double()
        assert mixed[name].dtype == one[name].dtype
        half_ulp = 2**-8 if mixed[name].dtype == torch.bfloat16 else 2**-23
        torch.testing.assert_close(mixed[name].double(), exact, rtol=1.01 * half_ulp, atol=1e-7)


def test_models_that_do_not_belong_together_are_refused_by_name(two, tmp_path):
    a, b = two
    wide = tmp_path / "wide"
    save(
        init_weights(HybridLM(ModelSpec.preset("test", vocab_size=340)), 0), wide, tokenizer_from=a
    )
    with pytest.raises(CheckpointError, match=r"backbone\.embeddings\.weight is \(330, "):
        merge(a, wide, 0.5, tmp_path / "out")
    for name, key in (("config.json", "layer_norm_epsilon"), ("tokenizer_config.json", "x")):
        changed = tmp_path / name.partition(".")[0]
        shutil.copytree(b, changed)
        value = json.loads((changed / name).read_text())
        (changed / name).write_text(json.dumps(value | {key: 0.01}))
        with pytest.raises(CheckpointError, match=name):
            merge(a, changed, 0.5, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"alpha = 1.5; allowed: 0"):
        merge(a, b, 1.5, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"no model\*\.safetensors"):
        merge(a, tmp_path, 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_heads_of_reward_models_are_merged_too(two, tmp_path):
    for number, path in enumerate(two):
        model = RewardModel(load(path))
        torch.nn.init.constant_(model.score.weight, number)
        save_reward_model(model, tmp_path / str(number), tokenizer_from=path)
    merge(tmp_path / "0", tmp_path / "1", 0.25, tmp_path / "out")
    assert (load_reward_model(tmp_path / "out").score.weight == 0.25).all()
    with pytest.raises(CheckpointError, match=r"score\.weight is \(1, 48\) in .* and absent in"):
        merge(tmp_path / "0", two[1], 0.25, tmp_path / "out")


def test_a_sweep_scores_every_alpha(two, tmp_path):
    a, b = two
    want = load(a).lm_head.weight[0, 0].item(), load(b).lm_head.weight[0, 0].item()

    def scores(path):
        return {"first": load(path).lm_head.weight[0, 0].item()}

    points = sweep(a, b, (0.0, 0.5, 1.0), tmp_path / "out", scores)
    found = [point.scores["first"] for point in points]
    assert found == pytest.approx([want[0], sum(want) / 2, want[1]])


def test_what_is_kept_is_the_worst_share_of_the_better_parent():
    parents = [{"maths": 0.8, "chat": 0.2}, {"maths": 0.4, "chat": 1.0}]
    assert kept({"maths": 0.8, "chat": 0.9}, parents) == pytest.approx(0.9)
    assert kept({"maths": 0.6, "chat": 1.1}, parents) == pytest.approx(0.75)
    assert kept({"maths": 0.0}, [{"maths": 0.0}]) == 1
    points = [
        SweepPoint(0.1, {"maths": 0.8, "chat": 0.3}),
        SweepPoint(0.9, {"maths": 0.7, "chat": 1.0}),
    ]
    assert best(points, parents).alpha == 0.9


def test_a_choice_by_nothing_is_said_so(caplog):
    assert best([SweepPoint(0.5, {"x": 0.0})], [{"x": 0.0}, {"x": 0.0}]).alpha == 0.5
    assert "neither model scores more than 0" in caplog.text


def test_of_equal_scores_the_middle_is_chosen():
    points = [SweepPoint(a, {"x": s}) for a, s in [(0.1, 3.0), (0.4, 3.0), (0.9, 3.0), (1.0, 2.0)]]
    assert best(points, [{"x": 3.0}]).alpha == 0.4
