"""Linear maps whose weights may be kept wider than the activations."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def linear(
    x: Float[Tensor, "*batch D"],
    weight: Float[Tensor, "F D"],
    bias: Float[Tensor, " F"] | None = None,
) -> Float[Tensor, "*batch F"]:
    """Return x weight^T + bias, the weight and bias cast to the activations' dtype.

    Weights may so be float32 masters under bfloat16 activations; their gradients are float32 again.
    """
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
