"""Low-rank adapters on every linear map of the layers, in_proj and out_proj of Mamba-2 included.

    W' = W + (alpha / rank) B A          W frozen; A (rank, inner) random, B (outer, rank) zero

The adapter is a parametrization of the weight, not a second path beside it: a layer asks for its
weight and gets W'. So every kernel that reads weights (the fused feed-forward, the engine's single
steps) sees the adapter, and merging is keeping W': the merged model computes bit for bit what the
adapted one did. The price is one W' per layer and forward, rank / tokens of the layer's own work.

Source: arXiv 2106.09685. Rank, alpha and which layers are our choice: the report tunes all weights.
"""

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from plait.core.config import Settings
from plait.core.seed import mix_seed
from plait.model.layers import Linear
from plait.model.lm import HybridLM


class LoraSettings(Settings):
    """Size of the adapters."""

    rank: Annotated[int, Field(gt=0)] = 16
    """Rows of A."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scale of the update, divided by the rank."""


class LowRank(nn.Module):
    """The update of one weight: weight -> weight + scale B A, in the weight's dtype."""

    def __init__(self, weight: Tensor, settings: LoraSettings, seed: int) -> None:
        super().__init__()
        outer, inner = weight.shape
        generator = torch.Generator().manual_seed(seed)
        bound = 1 / math.sqrt(inner)
        first = torch.empty(settings.rank, inner).uniform_(-bound, bound, generator=generator)
        self.A = nn.Parameter(first.to(weight))
        self.B = nn.Parameter(weight.new_zeros(outer, settings.rank))
        self.scale = settings.alpha / settings.rank

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight."""
        return _adapted(weight, self.A, self.B, self.scale)


def add_lora(model: HybridLM, settings: LoraSettings, seed: int) -> HybridLM:
    """Freeze a model and give every linear map of its layers an adapter, in place."""
    model.requires_grad_(False)
    for name, module in list(model.backbone.layers.named_modules()):
        if isinstance(module, Linear):
            update = LowRank(module.weight, settings, mix_seed(seed, "lora", name))
            parametrize.register_parametrization(module, "weight", update)
    return model


def merged_state(state: Mapping[str, Tensor], settings: LoraSettings) -> dict[str, Tensor]:
    """Return the state of an adapted model with its adapters added to the weights they adapt."""
    merged = dict(state)
    for name in state:
        stem, found, _ = name.partition(".parametrizations.weight.original")
        if found:
            parts = (merged.pop(f"{stem}.parametrizations.weight.{part}") for part in _PARTS)
            weight, a, b = parts
            merged[f"{stem}.weight"] = _adapted(weight, a, b, settings.alpha / settings.rank)
    return merged


_PARTS = ("original", "0.A", "0.B")


def _adapted(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.addmm(weight, b, a, alpha=scale)
