import pytest
import torch

from plait.align.lora import LoraSettings, add_lora, merged_state
from plait.data.pack import Sample, pack
from plait.model.init import init_weights
from plait.model.layers import Linear
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.train.losses import next_token_loss

SETTINGS = LoraSettings(rank=3, alpha=6.0)


@pytest.fixture
def pair():
    spec = ModelSpec.preset("test")
    return tuple(init_weights(HybridLM(spec), 0) for _ in range(2))


def stir(model):
    """Move the adapters as training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def test_fresh_adapters_change_nothing_and_reach_every_linear(pair):
    base, model = pair
    tokens = torch.randint(base.spec.vocab_size, (2, 70))
    linears = [m for m in base.backbone.layers.modules() if isinstance(m, Linear)]
    add_lora(model, SETTINGS, seed=0)
    assert torch.equal(model(tokens), base(tokens))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(linears)
    for name in ("in_proj", "out_proj", "q_proj", "o_proj", "up_proj", "down_proj"):
        assert any(f"{name}.parametrizations.weight.0.A" in each for each in trained), name


def test_gradients_reach_both_factors_and_nothing_else(pair):
    _, model = pair
    add_lora(model, SETTINGS, seed=0)
    stir(model)
    batch = pack([Sample(list(range(20, 60)), [1.0] * 40)])
    next_token_loss(model, batch).total.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name


def test_the_merged_model_computes_what_the_adapted_one_did(pair):
    base, model = pair
    add_lora(model, SETTINGS, seed=0)
    stir(model)
    merged = HybridLM(model.spec, device="meta")
    merged.load_state_dict(merged_state(model.state_dict(), SETTINGS), assign=True)
    tokens = torch.randint(model.spec.vocab_size, (2, 70))
    want = model(tokens)
    assert torch.equal(merged(tokens), want)
    assert (want - base(tokens)).abs().max() > 0.01
    assert set(merged.state_dict()) == set(base.state_dict())
