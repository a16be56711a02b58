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
    """Return down(relu(up(x))^2), each linear with its bias if it has one.

    Numerics: weights are cast to x.dtype, in which everything is computed and returned.
    """
    # rows are flattened first: relu_ must not meet a view, whose gradient would be copied
    hidden = linear(x.reshape(-1, x.shape[-1]), up, up_bias).relu_()
    hidden = hidden.square() if hidden.requires_grad else hidden.square_()
    return linear(hidden, down, down_bias).view(x.shape)
