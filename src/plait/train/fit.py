"""What every stage that trains does around the loop: processes, threads, loading, writing."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

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
    plain: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict,
) -> TrainResult:
    """Shard the model over the processes, train it, and write `out/model` with its tokenizer.

    `plain` turns the tensors that were trained into those of a model (merging adapters).
    """
    parallel.shard(model, model.backbone.layers)
    result = train(model, batches, loss, settings, out, evaluate=evaluate)
    write_model(model, out / "model", tokenizer_from, plain)
    return result


def write_model(
    model: HybridLM,
    directory: Path,
    tokenizer_from: Path,
    plain: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict,
) -> None:
    """Write a model as it is now; every process must call this, one writes."""
    tensors = parallel.gathered(model.state_dict())  # every process must take part
    if parallel.is_main():
        whole = HybridLM(model.spec, device="meta")
        whole.load_state_dict(plain(tensors), assign=True)
        save(whole, directory, tokenizer_from=tokenizer_from)
