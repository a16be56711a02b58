"""Cross-entropy over a large vocabulary without the logits of a whole sequence.

The gradient with respect to the logits is softmax minus one-hot; `chunked_head` has the rest.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plait.kernels import native
from plait.kernels.chunked_head import of_log_probabilities, weighted_sum


def chunked_cross_entropy(
    hidden: Float[Tensor, "T D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " T"],
    weights: Float[Tensor, " T"],
    chunk_tokens: int = 256,
) -> Float[Tensor, ""]:
    """Return the sum over tokens of weights[t] * -log softmax(weight hidden[t])[targets[t]].

    A token of weight 0 costs nothing and its target may be anything. Gradients flow to hidden and
    weight, each in its own dtype; none flows to `weights`.
    Numerics: the head is multiplied in hidden.dtype (a wider weight is rounded to it); logits are
    then widened, and the softmax, the sum and the accumulated gradient of the weight are float32
    (float64 stays).
    Raises: ValueError if `chunk_tokens` is not positive.
    """
    kept = weights.nonzero()[:, 0]
    targets = targets.index_select(0, kept)

    def compare(log_q: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        here = targets[chunk, None]
        losses = -log_q.gather(1, here)[:, 0]
        ones = torch.ones_like(here, dtype=log_q.dtype)
        return losses, log_q.exp_().scatter_add_(1, here, -ones)

    def compare_natively(
        make_logits: Callable[[], Tensor], chunk: slice, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = make_logits()
        here, losses = targets[chunk].long().contiguous(), torch.empty_like(scale)
        low, high = here.aminmax()
        if low < 0 or high >= logits.shape[1]:
            raise IndexError(f"targets {int(low)} ... {int(high)} for {logits.shape[1]} words")
        arguments = logits, here, scale.contiguous(), losses, *logits.shape
        native.call("cross_entropy", logits.dtype, *arguments)
        return losses, logits

    takes = native.takes(hidden, weight)
    comparison = compare_natively if takes else of_log_probabilities(compare)
    return weighted_sum(hidden, weight, weights, kept, comparison, chunk_tokens)
