"""Forward passes of a model that is never in memory whole.

A residual stream (B, T, D) is carried from layer to layer, each of which is read, used and
forgotten; the embedding and the output head, wider than any layer, are read in blocks of
vocabulary. What one model predicts is compared with another's block by block too, so logits of
the whole vocabulary are never held.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plait.compress.scores import FINAL_NORM
from plait.kernels.gated_norm import rms_norm
from plait.kernels.linear import linear
from plait.kernels.processor import product_dtype
from plait.model.hf_stream import ModelDirectory
from plait.model.layers import at_least_float32
from plait.model.lm import Device
from plait.model.state import ForwardContext

Metric = Literal["mse", "kl"]

_HEAD, _EMBEDDING = "lm_head.weight", "backbone.embeddings.weight"
_VOCABULARY_BLOCK = 8192
_POSITIONS = 1024
"""Positions whose logits (for a block of the vocabulary) are held at once."""


class Sweep(NamedTuple):
    """How streams are carried through the model."""

    dtype: torch.dtype
    device: Device
    tokens_per_forward: int
    stream_bytes: int
    """Memory for the streams of candidates."""


def compute_dtype(model: ModelDirectory, device: Device) -> torch.dtype:
    """Return the dtype of activations: the model's, or a wider one that is faster here."""
    return product_dtype(model.dtype, torch.device(device or "cpu"))


def embed(
    model: ModelDirectory, tokens: Int[Tensor, "B T"], dtype: torch.dtype, device: Device
) -> Float[Tensor, "B T D"]:
    """Return the residual stream before the first layer."""
    x = torch.empty(*tokens.shape, model.spec.hidden_size, dtype=dtype, device=device)
    tokens = tokens.to(x.device)
    for start, block in model.row_blocks(_EMBEDDING, _VOCABULARY_BLOCK, dtype, device):
        here = (tokens >= start) & (tokens < start + len(block))
        x[here] = block[tokens[here] - start]
    return x


@torch.no_grad()
def run_layer(
    layer: Callable[[Tensor, ForwardContext], Tensor], x: Tensor, tokens_per_forward: int
) -> None:
    """Replace a residual stream (B, T, D) by what a layer makes of it, a few rows at a time."""
    for rows in row_chunks(x, tokens_per_forward):
        x[rows] = layer(x[rows], ForwardContext(None))


def row_chunks(x: Tensor, tokens_per_forward: int) -> Iterator[slice]:
    """Yield slices of whole rows with about so many tokens, at least one row each."""
    step = max(1, tokens_per_forward // x.shape[1])
    for start in range(0, len(x), step):
        yield slice(start, start + step)


@torch.no_grad()
def final_hidden(model: ModelDirectory, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """Return hidden states after the final norm."""
    return rms_norm(x, model.tensor(FINAL_NORM, x.dtype, x.device), model.spec.norm_eps)


def head_blocks(
    model: ModelDirectory, dtype: torch.dtype, device: Device
) -> Iterator[Float[Tensor, "rows D"]]:
    """Yield the output head in blocks of rows."""
    for _, block in model.row_blocks(_HEAD, _VOCABULARY_BLOCK, dtype, device):
        yield block


@torch.no_grad()
def logit_distances(
    reference: Float[Tensor, "B T D"],
    others: Sequence[Tensor],
    head: Iterable[Tensor],
    metric: Metric = "mse",
    *,
    columns: Sequence[Tensor] | None = None,
    weights: Float[Tensor, "B T"] | None = None,
) -> list[float]:
    """Return how far the predictions of each model are from those of a reference.

    reference and others (B, T, D) are hidden states after the final norm; `head` gives blocks of
    rows of the output head. Another model may be narrower: `columns` says which of the head's
    columns each has. `mse` is the mean over positions and vocabulary of the squared difference of
    logits; `kl` the mean over positions of KL(reference || other), in nats; means over positions
    are weighted if there are weights. Sums are float64, logits at least float32.
    """
    flat, flat_others = reference.flatten(0, 1), [other.flatten(0, 1) for other in others]
    shares = torch.ones(len(flat)) if weights is None else weights.flatten()
    shares = shares.to(flat.device, torch.float64) / float(shares.sum(dtype=torch.float64))
    measures = [_MEASURES[metric](flat) for _ in others]
    for block in head:
        blocks = [block[:, kept] for kept in columns] if columns else [block] * len(others)
        for start in range(0, len(flat), _POSITIONS):
            rows = slice(start, start + _POSITIONS)
            expected = _logits(flat[rows], block)
            for measure, other, own in zip(measures, flat_others, blocks, strict=True):
                measure.add(rows, expected, _logits(other[rows], own))
    return [float(measure.total() @ shares) for measure in measures]


class _SquaredError:
    """Mean over the vocabulary of the squared difference of logits, of every position."""

    def __init__(self, like: Tensor) -> None:
        self._sums = torch.zeros(len(like), dtype=torch.float64, device=like.device)
        self._vocab_size = 0

    def add(self, rows: slice, a: Tensor, b: Tensor) -> None:
        """Take in logits (rows, V') of a block of the vocabulary."""
        self._sums[rows] += (a - b).square_().sum(1, dtype=torch.float64)
        if rows.start == 0:
            self._vocab_size += a.shape[1]

    def total(self) -> Tensor:
        """Return the mean of every position."""
        return self._sums / self._vocab_size


class _Divergence:
    """KL(p || q) of every position, from blocks of logits of both, in nats.

    KL = sum_v p_v (a_v - b_v) - log sum exp a + log sum exp b, every sum relative to a running
    maximum, as in online softmax.
    """

    def __init__(self, like: Tensor) -> None:
        dtype, shape = torch.float64, (2, len(like))
        self.most = torch.full(shape, -float("inf"), dtype=dtype, device=like.device)
        self.sums = torch.zeros(shape, dtype=dtype, device=like.device)
        self.gap = torch.zeros(len(like), dtype=dtype, device=like.device)

    def add(self, rows: slice, a: Tensor, b: Tensor) -> None:
        """Take in logits (rows, V') of a block of the vocabulary."""
        before = self.most[:, rows]
        most = torch.maximum(before, torch.stack([a.amax(1), b.amax(1)]).double())
        shrink = (before - most).exp()
        weights = (a - most[0, :, None].to(a.dtype)).exp()
        gap = (weights * (a - b)).sum(1, dtype=torch.float64)
        sums = torch.stack(
            [
                weights.sum(1, dtype=torch.float64),
                (b - most[1, :, None].to(b.dtype)).exp().sum(1, dtype=torch.float64),
            ]
        )
        self.sums[:, rows] = self.sums[:, rows] * shrink + sums
        self.gap[rows] = self.gap[rows] * shrink[0] + gap
        self.most[:, rows] = most

    def total(self) -> Tensor:
        """Return the divergence of every position."""
        log_sums = self.most + self.sums.log()
        return self.gap / self.sums[0] - log_sums[0] + log_sums[1]


_MEASURES = {"mse": _SquaredError, "kl": _Divergence}


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    return at_least_float32(linear(hidden, weight))
