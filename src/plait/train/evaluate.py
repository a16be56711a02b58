"""Validation loss in bits per byte: comparable between tokenizers, unlike loss per token.

    bits per byte = sum of -log2 p(token | tokens before it in its document) / bytes of these tokens

The sum runs over every token but each document's first and includes the end of the document, which
stands for no bytes: knowing where a text ends is part of modelling it.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import torch

from plait.data.blend import Blend
from plait.data.loader import ValidationBatch, validation_batches
from plait.model.lm import HybridLM
from plait.train.losses import next_token_loss


@torch.no_grad()
def bits_per_byte(
    model: HybridLM, batches: Iterable[ValidationBatch], max_tokens: int | None = None
) -> float:
    """Score batches until they end or `max_tokens` tokens have been read.

    Units: bits per byte of UTF-8 text.   Numerics: losses as in training, sums in float64.
    """
    nats, num_bytes, num_tokens = 0.0, 0, 0
    for batch, batch_bytes in batches:
        nats += float(next_token_loss(model, batch).total)
        num_bytes += batch_bytes
        num_tokens += batch.tokens.numel()
        if max_tokens is not None and num_tokens >= max_tokens:
            break
    return nats / math.log(2) / max(num_bytes, 1)


def validation_bits_per_byte(
    model: HybridLM, blend: Path, tokens_per_batch: int, max_tokens: int | None = None
) -> dict[str, float]:
    """Return `bits_per_byte.<category>` for every category with validation text.

    At most about `max_tokens` tokens of each category are read, always the same first ones.
    """
    return {
        f"bits_per_byte.{category}": bits_per_byte(
            model, validation_batches(blend, category, tokens_per_batch), max_tokens
        )
        for category, size in Blend.read(blend).validation.items()
        if size.tokens
    }
