import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.train.loop import LossOutput, TrainSettings
from plait.train.schedule import Schedule

VOCAB = 11


class Toy(nn.Module):
    """A language model of one matrix, with dropout so that random state matters."""

    def __init__(self, seed: int = 0, dropout: float = 0.2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Parameter(torch.randn(VOCAB, 7, generator=generator))
        self.norm = nn.Parameter(torch.ones(7))
        self.head = nn.Parameter(torch.randn(VOCAB, 7, generator=generator) * 0.1)
        self.dropout = dropout

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.dropout(self.embedding[tokens], self.dropout)
        return (x * self.norm).tanh() @ self.head.T


class ToyBatches:
    """Batches of a repeating pattern with noise; each depends on its number alone."""

    def __init__(self, num_tokens: int = 13) -> None:
        self.number, self.num_tokens = 0, num_tokens

    def __next__(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.number)
        noise = torch.randint(3, (self.num_tokens,), generator=generator)
        self.number += 1
        return (torch.arange(self.num_tokens) * 2 + noise) % VOCAB

    def state(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state(self, state: dict[str, Any]) -> None:
        self.number = state["number"]

    def describe(self, state: dict[str, Any]) -> str:
        return f"pattern {state['number']}"


def toy_loss(model: nn.Module, tokens: Tensor) -> LossOutput:
    logits = model(tokens[:-1])
    total = F.cross_entropy(logits, tokens[1:], reduction="sum")
    hits = (logits.argmax(-1) == tokens[1:]).float().mean()
    return LossOutput(total, len(tokens) - 1, {"accuracy": hits}, num_tokens=len(tokens))


def settings(num_steps: int = 6, **changes: Any) -> TrainSettings:
    schedule = Schedule(num_steps=num_steps, learning_rate=0.05, warmup_steps=2, decay_steps=2)
    return TrainSettings(
        **{"schedule": schedule, "checkpoint_every_steps": 2, "accumulation": 2} | changes
    )


def lines(out: Path, *, timed: bool = False) -> list[dict[str, Any]]:
    """Read metrics.jsonl, without what depends on the clock."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    clock = () if timed else ("elapsed_s", "tokens_per_s")
    return [{k: v for k, v in line.items() if k not in clock} for line in found]


def weights(model: nn.Module) -> dict[str, bytes]:
    return {name: t.detach().numpy().tobytes() for name, t in model.state_dict().items()}
