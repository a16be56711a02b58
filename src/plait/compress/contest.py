"""Candidates compared with their parent: first as they are cut, the best again after healing.

The measure is KL(parent || child) on held-out text: continuous, where accuracies of unhealed
children are all near chance. Children are cut in memory, measured and forgotten.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from plait.compress.distill import online_loss
from plait.compress.prune import prune
from plait.compress.scores import Scores
from plait.compress.search import Candidate
from plait.compress.teacher import CHUNK_TOKENS
from plait.compress.throughput import Throughput
from plait.core.artifact import write_json
from plait.core.progress import Progress
from plait.data.loader import PackedBatch
from plait.kernels.kl_divergence import chunked_kl
from plait.model.lm import HybridLM
from plait.train.loop import Batches, LoopSettings, TrainSettings, train
from plait.train.schedule import Schedule


class Healing(LoopSettings):
    """The short distillation that decides between the last candidates."""

    num_steps: Annotated[int, Field(ge=0)] = 100
    """Optimizer steps of each; 0 to trust the ranking."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak, falling to a tenth along a cosine. Our choice."""

    @property
    def plan(self) -> TrainSettings:
        """The loop's settings."""
        schedule = Schedule(
            num_steps=self.num_steps,
            learning_rate=self.learning_rate,
            min_learning_rate=self.learning_rate / 10,
            decay_steps=self.num_steps,
            decay_shape="cosine",
        )
        return TrainSettings.of(self, schedule, "healing")


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


class Yardstick:
    """How far any model's predictions are from a parent's, on tokens that stay the same.

    The parent reads the batches once; its hidden states are kept, tokens * D values.
    """

    def __init__(self, parent: HybridLM, batches: Sequence[PackedBatch]) -> None:
        self._head = parent.lm_head.weight.detach()
        self._num_weighted = sum(float(batch.weights.sum()) for batch in batches)
        with torch.no_grad():
            self._readings = [(batch, _hidden(parent, batch)) for batch in batches]

    @torch.no_grad()
    def kl(self, child: HybridLM) -> float:
        """Return the mean over weighted tokens of KL(parent || child), nats."""
        total, head = 0.0, child.lm_head.weight
        for batch, expected in self._readings:
            hidden, weights = _hidden(child, batch), batch.weights[0].to(expected.device)
            total += float(chunked_kl(hidden, head, expected, self._head, weights, CHUNK_TOKENS))
        return total / self._num_weighted


class Contest:
    """A parent, the scores by which it is cut, and the text on which children are compared."""

    def __init__(self, parent: HybridLM, scores: Scores, held_out: Sequence[PackedBatch]) -> None:
        self._parent, self._scores = parent, scores
        self._yardstick = Yardstick(parent, held_out)

    def child(self, candidate: Candidate) -> HybridLM:
        """Cut a candidate in memory."""
        cut = self._scores.cut(candidate.shape, self._parent.spec)
        return prune(self._parent, cut, self._scores.corrections(cut))

    def rank(
        self, found: Sequence[Candidate], speeds: Sequence[Throughput], file: Path
    ) -> list[Ranked]:
        """Return the candidates, nearest to the parent first; `file` remembers what is measured."""
        known: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
        with Progress("candidates", len(found), "children") as progress:
            for candidate in found:
                if candidate.name not in known:
                    known[candidate.name] = self._yardstick.kl(self.child(candidate))
                    write_json(file, known)
                progress.advance(1, f"KL {min(known.values()):.3g}")
        ranked = [
            Ranked(candidate, known[candidate.name], speed)
            for candidate, speed in zip(found, speeds, strict=True)
        ]
        return sorted(ranked, key=lambda each: each.kl)

    def heal(
        self, finalists: Sequence[Ranked], healing: Healing, text: Batches, folder: Path
    ) -> list[Ranked]:
        """Distil each on the same text and measure it again; resumes where it was interrupted."""
        if healing.num_steps == 0 or len(finalists) == 1:
            return list(finalists)
        loss, place, healed = online_loss(self._parent), text.state(), []
        for each in finalists:
            child = self.child(each.candidate).float()
            text.load_state(place)
            train(child, text, loss, healing.plan, folder / each.candidate.name)
            healed.append(each._replace(healed_kl=self._yardstick.kl(child)))
        return healed


def pareto(ranked: Sequence[Ranked]) -> list[Ranked]:
    """Return those that no other beats in both distance and speed, the nearest first."""
    kept: list[Ranked] = []
    for each in sorted(ranked, key=lambda one: (one.kl, -one.speed.tokens_per_s)):
        if not kept or each.speed.tokens_per_s > kept[-1].speed.tokens_per_s:
            kept.append(each)
    return kept


def _hidden(model: HybridLM, batch: PackedBatch) -> Tensor:
    device = model.lm_head.weight.device
    return model.hidden(batch.tokens.to(device), cu_seqlens=batch.cu_seqlens)[0]
