"""Scores to categories: each score cuts a pool of documents into buckets of equal bytes.

The cuts of a score are the values at 1/n, 2/n, ... of all bytes, documents in order of the score; a
document's bucket is how many cuts are at or below its score. Of several scores the highest bucket
counts, and buckets make tiers: Nemotron-CC's way. FineMath's way needs no cuts: the score itself
says the tier.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.data.quality_settings import TierSettings
from plait.data.steps import Step, Task, per_document

if TYPE_CHECKING:
    from datatrove.data import Document

Cuts = Mapping[str, Sequence[float]]


def find_cuts(
    documents: Iterable[Mapping[str, Any]], tiers: TierSettings
) -> dict[str, list[float]]:
    """Return the cuts of each score over a pool's documents; none where tiers go by the score."""
    if tiers.scores:
        return {}
    sizes: list[int] = []
    scores: dict[str, list[float]] = {name: [] for name in tiers.by}
    for document in documents:
        sizes.append(len(document["text"].encode()))
        for name, column in scores.items():
            column.append(document["metadata"][name])
    return {
        name: weighted_cuts(np.array(column), np.array(sizes), tiers.num_buckets)
        for name, column in scores.items()
    }


def weighted_cuts(values: np.ndarray, weights: np.ndarray, num_buckets: int) -> list[float]:
    """Return the `num_buckets` - 1 values at equal shares of the weight; none of no values."""
    if not values.size:
        return []
    order = np.argsort(values, kind="stable")
    shares = np.cumsum(weights[order]) / weights.sum()
    places = np.searchsorted(shares, np.arange(1, num_buckets) / num_buckets)
    return values[order[np.minimum(places, values.size - 1)]].astype(float).tolist()


def tier_of(metadata: Mapping[str, Any], tiers: TierSettings, cuts: Cuts) -> str | None:
    """Return the category of a document with scores, or None if it is below all."""
    if tiers.scores:
        value = max(metadata[name] for name in tiers.by)
        firsts: Mapping[str, float] = tiers.scores
    else:
        value = max(int(np.searchsorted(cuts[name], metadata[name], "right")) for name in tiers.by)
        firsts = tiers.buckets
    reached = [name for name in tiers.categories if value >= firsts[name]]
    return reached[-1] if reached else None


def tier_step(tiers: TierSettings, cuts: Cuts) -> Step:
    """Move each document to its tier's category; its own becomes the metadata `pool`.

    Drops: `low_quality`.
    """

    def judge(document: "Document", task: Task) -> str | None:
        tier = tier_of(document.metadata, tiers, cuts)
        if tier is None:
            return "low_quality"
        document.metadata |= {"pool": task.category, "category": tier}
        return None

    return per_document("tiers", judge)
