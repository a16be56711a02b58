"""Candidates compared with their parent as they are cut, every one a layer at a time.

The measure is KL(parent || child) on held-out text: continuous, where accuracies of unhealed
children are all near chance. A layer of the parent is read, cut for every candidate that keeps it,
used and forgotten; what stays in memory are the streams of the candidates, as many at once as
`Sweep.stream_bytes` holds. The parent's own stream is that of a child from which nothing is cut.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from plait.compress.cut import Cut
from plait.compress.prune import slices
from plait.compress.scores import FINAL_NORM, Scores
from plait.compress.search import Candidate
from plait.compress.stream import Sweep, embed, head_blocks, logit_distances
from plait.compress.throughput import Throughput
from plait.core.artifact import write_json
from plait.core.progress import Progress
from plait.data.loader import PackedBatch
from plait.kernels.documents import Documents
from plait.kernels.gated_norm import rms_norm
from plait.model.hf_stream import ModelDirectory
from plait.model.lm import Layer
from plait.model.state import ForwardContext


class Ranked(NamedTuple):
    """A candidate and what was found out about it."""

    candidate: Candidate
    kl: float
    """To the parent on held-out text, nats per token, as cut."""
    speed: Throughput
    healed_kl: float | None = None
    """The same after a short distillation."""

    @property
    def final_kl(self) -> float:
        """The latest of the two."""
        return self.kl if self.healed_kl is None else self.healed_kl

    def record(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        found = {"kl": self.kl, "healed_kl": self.healed_kl, **self.speed._asdict()}
        return self.candidate.record() | found


def rank(
    found: Sequence[Candidate],
    speeds: Sequence[Throughput],
    scores: Scores,
    yardstick: "StreamedYardstick",
    file: Path,
) -> list[Ranked]:
    """Return the candidates, nearest to the parent first; `file` remembers what is measured."""
    known: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    pending = [candidate for candidate in found if candidate.name not in known]
    with Progress("candidates", len(found), "children") as progress:
        progress.resume(len(found) - len(pending))
        while pending:
            group = pending[: yardstick.at_once]
            cuts = [scores.cut(candidate.shape, scores.spec) for candidate in group]
            measured = yardstick.kl([(cut, scores.corrections(cut)) for cut in cuts])
            known |= zip((candidate.name for candidate in group), measured, strict=True)
            write_json(file, known)
            pending = pending[len(group) :]
            progress.advance(len(group), f"KL {min(known.values()):.3g}")
    ranked = [
        Ranked(candidate, known[candidate.name], speed)
        for candidate, speed in zip(found, speeds, strict=True)
    ]
    return sorted(ranked, key=lambda each: each.kl)


def pareto(ranked: Sequence[Ranked]) -> list[Ranked]:
    """Return those that no other beats in both distance and speed, the nearest first."""
    kept: list[Ranked] = []
    for each in sorted(ranked, key=lambda one: (one.kl, -one.speed.tokens_per_s)):
        if not kept or each.speed.tokens_per_s > kept[-1].speed.tokens_per_s:
            kept.append(each)
    return kept


class StreamedYardstick:
    """How far cuts of a parent are from it, on tokens that stay the same, without a whole model."""

    def __init__(self, model: ModelDirectory, batches: Sequence[PackedBatch], sweep: Sweep) -> None:
        self._model, self._sweep = model, sweep
        self._tokens = torch.cat([batch.tokens for batch in batches], 1)
        self._weights = torch.cat([batch.weights for batch in batches], 1)
        self._contexts = [
            ForwardContext(Documents(batch.cu_seqlens.to(sweep.device))) for batch in batches
        ]
        self._lengths = [batch.tokens.shape[1] for batch in batches]
        [self._reference] = self._hidden([_Child(model, Cut.nothing(model.spec), {})])

    @property
    def at_once(self) -> int:
        """How many candidates are measured together."""
        return max(1, self._sweep.stream_bytes // self._reference.nbytes)

    def kl(self, cuts: Sequence[tuple[Cut, Mapping[str, Tensor]]]) -> list[float]:
        """Return for each cut, with its corrections, the mean of KL(parent || child), nats."""
        children = [_Child(self._model, cut, corrections) for cut, corrections in cuts]
        return logit_distances(
            self._reference,
            self._hidden(children),
            head_blocks(self._model, self._sweep.dtype, self._sweep.device),
            "kl",
            columns=[child.embedding for child in children],
            weights=self._weights,
        )

    @torch.no_grad()
    def _hidden(self, children: Sequence["_Child"]) -> list[Float[Tensor, "1 T D"]]:
        """Return the hidden states of children after their final norms."""
        model, sweep = self._model, self._sweep
        x = embed(model, self._tokens, sweep.dtype, sweep.device)
        streams = [x[..., child.embedding] for child in children]
        for index in range(model.spec.num_layers):
            layer = model.layer(index, sweep.dtype, sweep.device)
            for child, stream in zip(children, streams, strict=True):
                if index in child.cut.layers:
                    own = child.layer(index, layer)
                    parts = stream.split(self._lengths, 1)
                    for part, context in zip(parts, self._contexts, strict=True):
                        part.copy_(own(part, context))
        for child, stream in zip(children, streams, strict=True):
            stream.copy_(child.normed(stream))
        return streams


class _Child:
    """A cut on its way through the layers of its parent."""

    def __init__(self, parent: ModelDirectory, cut: Cut, corrections: Mapping[str, Tensor]) -> None:
        self.cut, self.embedding = cut, torch.tensor(cut.embedding)
        self._parent, self._corrections = parent, corrections
        self._spec, self._slices = cut.spec(parent.spec), slices(parent.spec, cut)

    def layer(self, index: int, whole: Layer) -> Layer:
        """Return what is kept of a layer of the parent."""
        number = self.cut.layers.index(index)
        layer, weights = Layer(self._spec, number, torch.float32, "meta"), whole.state_dict()
        parts = {name: self._slices[f"backbone.layers.{number}.{name}"] for name in weights}
        tensors = {name: part.of(weights[name], self._corrections) for name, part in parts.items()}
        layer.load_state_dict(tensors, assign=True)
        return layer.requires_grad_(False)

    def normed(self, x: Float[Tensor, "1 T D"]) -> Float[Tensor, "1 T D"]:
        """Return hidden states after the final norm."""
        weight = self._parent.tensor(FINAL_NORM, x.dtype, x.device)
        weight = self._slices[FINAL_NORM].of(weight, self._corrections)
        return rms_norm(x, weight, self._spec.norm_eps)
