import torch
from torch import nn

from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.train.optim import AdamWSettings, adamw, set_learning_rate


def test_norms_biases_and_state_space_constants_do_not_decay():
    spec = ModelSpec.preset("test", use_bias=True, mlp_bias=True)
    model = HybridLM(spec, device="meta")
    optimizer = adamw(model, AdamWSettings())
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {
        name_of[id(parameter)]: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert decayed.keys() == set(name_of.values())
    spared = ("A_log", ".D", "dt_bias", ".bias", "norm.weight", "norm_f.weight")
    for name, decay in decayed.items():
        assert decay == (0.0 if name.endswith(spared) else 0.1), name
    assert decayed["backbone.embeddings.weight"] == decayed["lm_head.weight"] == 0.1
    assert sum(name.endswith(("A_log", ".D", "dt_bias")) for name in decayed) == 9


def test_update_is_adamw_by_hand():
    model = nn.Module()
    model.matrix = nn.Parameter(torch.tensor([[0.5, -2.0]]))
    optimizer = adamw(model, AdamWSettings(beta1=0.8, beta2=0.9, weight_decay=0.1, epsilon=1e-8))
    want, m, v = torch.tensor([[0.5, -2.0]], dtype=torch.float64), 0.0, 0.0
    for step, gradient in enumerate([[1.0, -3.0], [0.5, 2.0], [-1.0, 0.25]], start=1):
        g = torch.tensor([gradient], dtype=torch.float64)
        rate = 0.1 / step
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        want -= rate * 0.1 * want
        want -= rate * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-8)
        model.matrix.grad = g.float()
        set_learning_rate(optimizer, rate)
        optimizer.step()
    torch.testing.assert_close(model.matrix.detach().double(), want, rtol=1e-6, atol=1e-6)


def test_frozen_parameters_are_left_out():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    groups = adamw(model, AdamWSettings()).param_groups
    assert [len(group["params"]) for group in groups] == [1, 0]
