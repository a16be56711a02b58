"""The feed-forward mixer, letter `-`: two projections with a squared ReLU between, no gate."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plait.kernels.feed_forward import feed_forward
from plait.model.layers import Linear
from plait.model.spec import ModelSpec
from plait.model.state import ForwardContext


class FeedForward(nn.Module):
    """y = W_down relu(W_up x)^2."""

    def __init__(
        self, spec: ModelSpec, dtype: torch.dtype, device: torch.device | str | None
    ) -> None:
        super().__init__()
        width, inner = spec.hidden_size, spec.intermediate_size
        self.up_proj = Linear(width, inner, spec.mlp_bias, dtype=dtype, device=device)
        self.down_proj = Linear(inner, width, spec.mlp_bias, dtype=dtype, device=device)

    def forward(self, x: Float[Tensor, "B T D"], context: ForwardContext) -> Float[Tensor, "B T D"]:
        """Mix channels of each token alone, in x.dtype; the context is not used."""
        up, down = self.up_proj, self.down_proj
        return feed_forward(x, up.weight, down.weight, up.bias, down.bias)
