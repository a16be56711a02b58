"""The three modules every layer is made of: linear, embedding and RMS norm.

Their constructors leave memory uninitialised (weights come from a checkpoint or from `model/init`),
and their forward follows the activations: weights are cast to the dtype of the input, so float32
master weights serve bfloat16 activations and a float64 model stays float64 throughout.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plait.kernels.gated_norm import rms_norm
from plait.kernels.linear import linear


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32, or unchanged if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


class Linear(nn.Linear):
    """Apply x W^T + b with the weights cast to x.dtype."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""

    def forward(self, input: Float[Tensor, "*rows inner"]) -> Float[Tensor, "*rows outer"]:
        """Return the projection in the dtype of the input."""
        return linear(input, self.weight, self.bias)


class Embedding(nn.Embedding):
    """A table of token vectors."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last axis and scale."""

    def __init__(
        self,
        width: int,
        eps: float,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype, device=device))

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Normalise in at least float32, return x.dtype."""
        return rms_norm(x, self.weight, self.eps)
