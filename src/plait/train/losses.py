"""The loss of language modelling; other losses live with what trains on them."""

from plait.data.loader import PackedBatch
from plait.kernels.cross_entropy import chunked_cross_entropy
from plait.model.lm import HybridLM
from plait.train.loop import LossOutput


def next_token_loss(model: HybridLM, batch: PackedBatch) -> LossOutput:
    """Return the weighted sum of next-token negative log-likelihoods, in nats.

    total = sum_t weights_t * -log p(targets_t | tokens_<=t of the same document)

    Numerics: hidden states in the compute dtype, the loss in at least float32.
    """
    tokens, targets, weights, cu_seqlens = (x.to(model.lm_head.weight.device) for x in batch)
    hidden = model.hidden(tokens, cu_seqlens=cu_seqlens)
    total = chunked_cross_entropy(hidden[0], model.lm_head.weight, targets[0], weights[0])
    return LossOutput(total, weights.sum(), num_tokens=tokens.numel())
