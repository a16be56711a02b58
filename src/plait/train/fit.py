"""What every stage that trains does around the loop: processes, threads, loading, writing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from plait.core.run_folder import model_directory
from plait.model.hf import load, save
from plait.model.lm import HybridLM
from plait.train import parallel
from plait.train.loop import (
    Batches,
    Evaluation,
    LossFunction,
    TrainResult,
    TrainSettings,
    train,
)


@contextmanager
def session(num_threads: int | None) -> Iterator[None]:
    """Join torchrun's processes, if there are any, and use `num_threads` threads (None: as is)."""
    former = torch.get_num_threads()
    torch.set_num_threads(num_threads or former)
    try:
        with parallel.process_group():
            yield
    finally:
        torch.set_num_threads(former)


def load_masters(source: Path) -> HybridLM:
    """Load float32 parameters of a model directory, or of a run folder that holds `model/`."""
    return load(model_directory(source), dtype=torch.float32, device=parallel.device())


def fit(
    model: HybridLM,
    batches: Batches,
    loss: LossFunction,
    settings: TrainSettings,
    out: Path,
    tokenizer_from: Path,
    *,
    evaluate: Evaluation | None = None,
) -> TrainResult:
    """Shard the model over the processes, train it, and write `out/model` with its tokenizer."""
    parallel.shard(model, model.backbone.layers)
    result = train(model, batches, loss, settings, out, evaluate=evaluate)
    gathered = _gathered(model)
    if parallel.is_main():
        save(gathered, out / "model", tokenizer_from=tokenizer_from)
    return result


def _gathered(model: HybridLM) -> HybridLM:
    """Return the model with whole tensors; every process must call it."""
    if parallel.num_processes() == 1:
        return model
    gathered = HybridLM(model.spec, device="meta")
    gathered.load_state_dict(parallel.gathered(model.state_dict()), assign=True)
    return gathered
