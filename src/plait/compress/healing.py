"""The last candidates compared after a short distillation, which can turn their order round."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from plait.compress.distill import online_loss
from plait.compress.prune import prune
from plait.compress.ranking import Ranked
from plait.compress.scores import Scores
from plait.compress.teacher import CHUNK_TOKENS
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


def heal(
    parent: HybridLM,
    scores: Scores,
    finalists: Sequence[Ranked],
    held_out: Sequence[PackedBatch],
    healing: Healing,
    text: Batches,
    folder: Path,
) -> list[Ranked]:
    """Distil each on the same text and measure it; resumes where it was interrupted."""
    loss, place, healed = online_loss(parent), text.state(), []
    yardstick = Yardstick(parent, held_out)
    for each in finalists:
        cut = scores.cut(each.candidate.shape, parent.spec)
        child = prune(parent, cut, scores.corrections(cut)).float()
        text.load_state(place)
        train(child, text, loss, healing.plan, folder / each.candidate.name)
        healed.append(each._replace(healed_kl=yardstick.kl(child)))
    return healed


def _hidden(model: HybridLM, batch: PackedBatch) -> Tensor:
    device = model.lm_head.weight.device
    return model.hidden(batch.tokens.to(device), cu_seqlens=batch.cu_seqlens)[0]
