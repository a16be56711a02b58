"""What a teacher says of a run's batches, written once: its k likeliest tokens per position.

Students of the same data can then be trained without the teacher in memory. A batch is a file,
`00000012.safetensors`: ids (T, k) int32, log-probabilities (T, k) float32, and the SHA-256 of the
batch's tokens, so that lines of one data order are never taken for those of another. Writing goes
on where it stopped.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from plait.core.artifact import write_atomic
from plait.core.errors import ConfigError, DataError
from plait.core.progress import track
from plait.data.loader import PackedBatch
from plait.kernels.kl_divergence import TopK
from plait.model.lm import HybridLM
from plait.train.loop import Batches

CHUNK_TOKENS = 256
"""Positions whose logits are held at once, the student's and the teacher's."""


class TaughtBatch(NamedTuple):
    """A batch with what the teacher said of it."""

    batch: PackedBatch
    teacher: TopK


def store(teacher: HybridLM, batches: Batches, num_batches: int, top_k: int, folder: Path) -> None:
    """Let the teacher read the next batches and write what it says of them.

    Raises: ConfigError if the vocabulary has fewer than `top_k` tokens.
    """
    if top_k > teacher.spec.vocab_size:
        raise ConfigError(
            f"top_k = {top_k}, the teacher knows {teacher.spec.vocab_size} tokens; lower it"
        )
    for index in track(range(num_batches), "teacher", unit="batches"):
        batch: PackedBatch = next(batches)
        file = _file(folder, index)
        if not file.exists():
            ids, log_probabilities = _likeliest(teacher, batch, top_k)
            tensors = {"ids": ids, "log_probabilities": log_probabilities}
            write_atomic(file, save(tensors, metadata={"tokens": _digest(batch)}))


class Taught:
    """Batches, each with what `store` kept of the teacher.

    Raises: DataError when a batch is not the one that was stored under its number, or none was.
    """

    def __init__(self, batches: Batches, folder: Path) -> None:
        self._batches, self._folder, self._index = batches, folder, 0

    def __next__(self) -> TaughtBatch:
        batch: PackedBatch = next(self._batches)
        file = _file(self._folder, self._index)
        try:
            with safe_open(file, "pt") as stored:
                if stored.metadata()["tokens"] != _digest(batch):
                    raise DataError(
                        f"{file}: the teacher read other tokens; the data or its order changed: "
                        f"remove {self._folder} and let it read them again"
                    )
                ids, log_probabilities = (
                    stored.get_tensor(name) for name in ("ids", "log_probabilities")
                )
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{file}: nothing readable of the teacher ({error}); let it read this run's data"
            ) from None
        self._index += 1
        return TaughtBatch(batch, TopK(ids.long(), log_probabilities))

    def state(self) -> dict[str, Any]:
        """Return the place as JSON values."""
        return {"index": self._index, "batches": self._batches.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go to a place that `state` gave."""
        self._index = state["index"]
        self._batches.load_state(state["batches"])


@torch.inference_mode()
def _likeliest(teacher: HybridLM, batch: PackedBatch, top_k: int) -> tuple[Tensor, Tensor]:
    device = teacher.lm_head.weight.device
    hidden = teacher.hidden(batch.tokens.to(device), cu_seqlens=batch.cu_seqlens)[0]
    found = [
        teacher.lm_head(rows).float().log_softmax(-1).topk(top_k)
        for rows in hidden.split(CHUNK_TOKENS)
    ]
    ids = torch.cat([part.indices for part in found]).int().cpu()
    return ids, torch.cat([part.values for part in found]).cpu()


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:08d}.safetensors"


def _digest(batch: PackedBatch) -> str:
    return hashlib.sha256(batch.tokens.numpy().tobytes()).hexdigest()
