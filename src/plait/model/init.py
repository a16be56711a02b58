"""Weights for a model trained from scratch.

Embeddings and projections are normal with standard deviation `initializer_range`; A = 1..H and
D = 1 per Mamba layer; dt_bias is the inverse softplus of a step drawn log-uniformly from
[time_step_min, time_step_max]; convolutions are uniform in +-1/sqrt(W). With
`rescale_prenorm_residual` the Mamba output projections are uniform in +-1/sqrt(d_inner) divided by
sqrt(L), so that the residual stream does not grow with depth. Norms start at 1, biases at 0.

Every tensor has a generator of its own, seeded by (seed, name): a tensor's values do not depend on
which other tensors exist. Draws are float32 on the tensor's device, then rounded to its dtype.

Source: the initialisation of the released Nemotron-H code (arXiv 2504.03624).
"""

import math

import torch
from torch import Tensor

from plait.core.seed import mix_seed
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec


@torch.no_grad()
def init_weights(model: HybridLM, seed: int) -> HybridLM:
    """Fill every parameter in place from `seed`, and return the model."""
    spec = model.spec
    for name, weight in model.named_parameters():
        draw = torch.empty_like(weight, dtype=torch.float32)
        generator = torch.Generator(weight.device).manual_seed(mix_seed(seed, name))
        _fill(draw, name, spec, generator)
        weight.copy_(draw)
    return model


def _fill(draw: Tensor, name: str, spec: ModelSpec, generator: torch.Generator) -> None:
    leaf = name.removesuffix(".weight").rpartition(".")[2]
    if leaf in ("norm", "norm_f", "D"):
        draw.fill_(1.0)
    elif leaf == "A_log":
        draw.copy_(torch.arange(1, len(draw) + 1).log())
    elif leaf == "dt_bias":
        draw.copy_(_inverse_softplus(_draw_steps(draw, spec, generator)))
    elif ".conv1d" in name:
        bound = spec.conv_kernel**-0.5
        draw.uniform_(-bound, bound, generator=generator)
    elif leaf == "bias":
        draw.zero_()
    elif leaf == "out_proj" and spec.rescale_prenorm_residual:
        bound = (spec.d_inner * spec.num_layers) ** -0.5
        draw.uniform_(-bound, bound, generator=generator)
    else:
        draw.normal_(0.0, spec.initializer_range, generator=generator)


def _draw_steps(like: Tensor, spec: ModelSpec, generator: torch.Generator) -> Tensor:
    low, high = math.log(spec.time_step_min), math.log(spec.time_step_max)
    exponent = torch.empty_like(like).uniform_(low, high, generator=generator)
    return exponent.exp().clamp(min=spec.time_step_floor)


def _inverse_softplus(y: Tensor) -> Tensor:
    # log(exp(y) - 1) without overflow
    return y + torch.log(-torch.expm1(-y))
