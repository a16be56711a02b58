"""A teacher that is only read: its matrices kept in eight bits and widened as they are used.

    int8     w ~ q s,  q whole numbers from -127 to 127
    float8   w ~ q s,  q in e4m3: four bits of exponent, three of mantissa

with one float32 scale s for every row of a matrix, the greatest |w| of the row over the greatest q.
That is half the memory of bfloat16, and the products are still those of the activations' dtype. The
embedding, the output head and everything that is no matrix stay as they are: what the student
learns is read off the head, and the rest is small.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from plait.model.layers import Linear
from plait.model.lm import HybridLM

FrozenDtype = Literal["int8", "float8"]

_STORED: dict[FrozenDtype, tuple[torch.dtype, float]] = {
    "int8": (torch.int8, 127.0),
    "float8": (torch.float8_e4m3fn, 448.0),
}


def freeze(model: HybridLM, dtype: FrozenDtype) -> HybridLM:
    """Store every matrix of the layers in eight bits, in place; the model cannot be trained then.

    Returns the model, whose weights read as before, in the dtype they had.
    """
    model.requires_grad_(False)
    for module in model.backbone.layers.modules():
        if isinstance(module, Linear):
            register_parametrization(module, "weight", _Rows(*_STORED[dtype], module.weight.dtype))
    return model


class _Rows(nn.Module):
    """Turns stored rows into a weight of the dtype it had, and a weight into what is stored."""

    def __init__(self, stored: torch.dtype, greatest: float, dtype: torch.dtype) -> None:
        super().__init__()
        self._stored, self._greatest, self._dtype = stored, greatest, dtype

    def forward(self, rows: Tensor, scales: Tensor) -> Tensor:
        """Return the weight."""
        return rows.to(self._dtype) * scales.to(self._dtype)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is stored: rows in eight bits, a scale for each."""
        wide = weight.float()
        scales = wide.abs().amax(1, keepdim=True).clamp(min=1e-30) / self._greatest
        rows = wide / scales
        return (rows if self._stored.is_floating_point else rows.round()).to(self._stored), scales
