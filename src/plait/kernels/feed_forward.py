"""The squared-ReLU feed-forward layer."""

from jaxtyping import Float
from torch import Tensor

from plait.kernels.linear import linear


def feed_forward(
    x: Float[Tensor, "*batch D"],
    up: Float[Tensor, "F D"],
    down: Float[Tensor, "D F"],
    up_bias: Float[Tensor, " F"] | None = None,
    down_bias: Float[Tensor, " D"] | None = None,
) -> Float[Tensor, "*batch D"]:
    """Return down(relu(up(x))^2)."""
    return linear(linear(x, up, up_bias).relu().square(), down, down_bias)
