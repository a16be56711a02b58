"""Logits to tokens, all rows at once.

A row's token depends on its own logits, parameters and one random number in [0, 1), never on its
neighbours: the number picks the token at that point of the cumulative probabilities (inverse CDF).
So no row needs a call of its own, and a seed gives the same text in any batch.

The log-probability of a token is that of the model itself: log-softmax of the raw logits,
temperature 1, nothing filtered or masked. That is what a trainer's forward computes for the same
tokens.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plait.engine.request import SamplingParams, TokenLogprob
from plait.kernels import native

# The largest number below 1 whose product with any sum stays below that sum.
_LAST_UNIFORM = 1 - 2**-52

Edit = Callable[[Tensor], None]
"""Changes the logits (V,) of one row in place."""


class Sampled(NamedTuple):
    """One token per row, and its log-probability (0.0 where no row asked for it)."""

    tokens: list[int | None]
    """None where no token can be chosen: logits that are not finite, or nothing allowed."""
    logprobs: list[float]
    top_logprobs: list[list[TokenLogprob]]
    """The most probable tokens; empty where not asked for."""


def sample(
    logits: Float[Tensor, "S V"],
    params: Sequence[SamplingParams],
    uniforms: Sequence[float],
    edits: Sequence[Edit | None],
    num_ids: int | None = None,
) -> Sampled:
    """Choose a token per row; rows with temperature 0 take the most probable one.

    edits: changes to a row's logits, bans among them; ids from `num_ids` on (padding of the
    vocabulary) are never chosen.
    Numerics: probabilities in the dtype of the logits, their sums in float64.
    """
    allowed = _edited(logits[:, :num_ids], edits)
    peaks, tokens = allowed.max(-1)
    drawn = [row for row, each in enumerate(params) if each.temperature > 0]
    if drawn:
        index: slice | Tensor = slice(None)  # all rows, which need no copy
        if len(drawn) < len(params):
            index = torch.tensor(drawn, device=logits.device)
        each_params, each_uniform = [params[row] for row in drawn], [uniforms[row] for row in drawn]
        tokens[index] = _draw(allowed[index], each_params, each_uniform)
    scores = peaks
    if wanted := any(each.logprobs for each in params):
        scores = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    # One transfer for all; ids are exact in float64.
    ids, logprobs, largest = torch.stack(
        [each.double() for each in (tokens, scores, peaks)]
    ).tolist()
    return Sampled(
        [int(id_) if math.isfinite(peak) else None for id_, peak in zip(ids, largest, strict=True)],
        logprobs if wanted else [0.0] * len(ids),
        top_logprobs(logits, [each.top_logprobs for each in params], num_ids),
    )


def top_logprobs(
    logits: Float[Tensor, "S V"], counts: Sequence[int], num_ids: int | None = None
) -> list[list[TokenLogprob]]:
    """Return the `counts[s]` most probable tokens of each row, best first; ids below `num_ids`."""
    if not any(counts):
        return [[] for _ in counts]
    known = logits[:, :num_ids]
    values, ids = known.topk(min(max(counts), known.shape[1]), dim=-1)
    values = values - logits.logsumexp(-1, keepdim=True)
    return [
        [TokenLogprob(*pair) for pair in zip(row_ids[:count], row[:count], strict=True)]
        for count, row_ids, row in zip(counts, ids.tolist(), values.tolist(), strict=True)
    ]


def filtered_probabilities(
    logits: Float[Tensor, "S V"], params: Sequence[SamplingParams]
) -> Float[Tensor, "S V"]:
    """Return softmax(logits / temperature), filtered by top_k, then top_p, then min_p; not
    normalised.

    Tokens exactly as probable as the last one that top_k or top_p keeps are kept with it, so the
    result does not depend on an order among equals.
    """
    temperature = logits.new_tensor([each.temperature for each in params])[:, None]
    # The largest becomes 0, so that no temperature overflows.
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature
    if rows := [row for row, each in enumerate(params) if 0 < each.top_k < logits.shape[1]]:
        index = torch.tensor(rows, device=logits.device)
        scaled[index] = _keep_top_k(scaled[index], [params[row].top_k for row in rows])
    probabilities = scaled.softmax(-1)
    if rows := [row for row, each in enumerate(params) if each.top_p < 1]:
        index = torch.tensor(rows, device=logits.device)
        probabilities[index] = _keep_top_p(
            probabilities[index], [params[row].top_p for row in rows]
        )
    if any(each.min_p for each in params):
        share = logits.new_tensor([each.min_p for each in params])[:, None]
        floor = share * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
    return probabilities


def _draw(
    logits: Float[Tensor, "S V"], params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> Int[Tensor, " S"]:
    if not native.takes(logits, dtypes=(torch.float32,)):
        return _inverse_cdf(filtered_probabilities(logits, params), uniforms)
    most = logits.shape[1]  # a larger top_k says the same, and need not fit a number of C
    settings = [
        (each.temperature, min(each.top_k, most), each.top_p, each.min_p, uniform)
        for each, uniform in zip(params, uniforms, strict=True)
    ]
    tokens = torch.empty(len(logits), dtype=torch.int64)
    doubles = torch.tensor(settings, dtype=torch.float64)
    native.call("sample", logits.dtype, logits.contiguous(), doubles, tokens, *logits.shape)
    return tokens


def _edited(logits: Tensor, edits: Sequence[Edit | None]) -> Tensor:
    if all(edit is None for edit in edits):
        return logits
    edited = logits.clone()
    for row, edit in enumerate(edits):
        if edit is not None:
            edit(edited[row])
    return edited


def _keep_top_k(logits: Float[Tensor, "S V"], counts: list[int]) -> Float[Tensor, "S V"]:
    largest = logits.topk(max(counts), dim=-1).values
    last = torch.tensor(counts, device=logits.device)[:, None] - 1
    return logits.masked_fill(logits < largest.gather(-1, last), -torch.inf)


def _keep_top_p(probabilities: Float[Tensor, "S V"], sums: list[float]) -> Float[Tensor, "S V"]:
    limit = torch.tensor(sums, dtype=torch.float64, device=probabilities.device)[:, None]
    # Tokens below (1 - p) / V have less than 1 - p together, so the others reach p: only these are
    # sorted, usually a few of many.
    candidates = probabilities >= (1 - limit) / probabilities.shape[1]
    # At least one, though a row of which nothing is allowed has none.
    ordered = probabilities.topk(max(1, int(candidates.sum(-1).max())), dim=-1).values
    before = ordered.cumsum(-1, dtype=torch.float64) - ordered
    least = ordered.gather(-1, ((before < limit).sum(-1, keepdim=True) - 1).clamp(min=0))
    return probabilities.masked_fill(probabilities < least, 0.0)


def _inverse_cdf(
    probabilities: Float[Tensor, "S V"], uniforms: Sequence[float]
) -> Int[Tensor, " S"]:
    sums = probabilities.cumsum(-1, dtype=torch.float64)
    uniform = sums.new_tensor(uniforms).clamp(max=_LAST_UNIFORM)
    # The first id whose sum exceeds the target: one of probability 0 adds nothing and is never it.
    picks = torch.searchsorted(sums, (uniform * sums[:, -1])[:, None], right=True)[:, 0]
    return picks.clamp(max=sums.shape[1] - 1)
