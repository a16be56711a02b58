"""What all stages that tune a trained model share: settings, loading, adapters, writing."""

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from plait.align.lora import LoraSettings, add_lora, merged_state
from plait.align.records import existing_files
from plait.core.errors import ConfigError
from plait.core.run_folder import model_directory
from plait.model.lm import HybridLM
from plait.train import parallel
from plait.train.fit import fit, load_masters, write_model
from plait.train.loop import (
    Batches,
    Evaluation,
    LoopSettings,
    LossFunction,
    TrainResult,
    TrainSettings,
)
from plait.train.precision import Precision, set_precision
from plait.train.schedule import Schedule

PAIRS_FILE = "pairs.jsonl"
"""What the stage `pairs` writes."""

FEW_STEPS = 10
"""Fewer are worth a warning."""

logger = logging.getLogger(__name__)

PositiveInt = Annotated[int, Field(gt=0)]


class TuneSettings(LoopSettings):
    """Settings of every stage that tunes a trained model."""

    files: tuple[str, ...] = ()
    """JSONL or parquet files of the user."""
    strict: bool = False
    """True stops at the first row that cannot be used; otherwise they are counted and named."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    """Peak. Source of the default: public fine-tuning recipes for this family."""
    min_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Rate at the end of the decay."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear rise."""
    decay_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of all steps in which the rate falls to its minimum."""
    precision: Precision = "float32"
    """Dtype of activations; parameters and moments are float32 in any case."""
    lora: LoraSettings | None = None
    """Train low-rank adapters and merge them at the end; None trains every weight."""
    seed: int = 0
    """Of generated tasks, sampling and the order of the data."""
    num_threads: PositiveInt | None = None
    """Processor threads; None for torch's own choice."""

    def files_read(self) -> list[Path]:
        """Return the user's files."""
        return existing_files(self.files)

    def schedule_of(self, num_steps: int) -> Schedule:
        """Return the schedule of a run of so many steps."""
        warmup_steps = min(self.warmup_steps, num_steps - 1)
        return Schedule(
            num_steps=num_steps,
            learning_rate=self.learning_rate,
            min_learning_rate=self.min_learning_rate,
            warmup_steps=warmup_steps,
            decay_steps=min(round(num_steps * self.decay_share), num_steps - warmup_steps),
        )


class EpochSettings(TuneSettings):
    """Settings of a stage that passes over fixed data."""

    num_epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the data."""
    tokens_per_batch: PositiveInt = 8192
    """Most tokens of a micro-batch; items are packed whole, longer ones are left out."""

    def schedule(self, num_batches: int) -> Schedule:
        """Return the schedule of a run over `num_batches` micro-batches per epoch."""
        num_steps = max(1, round(num_batches * self.num_epochs / self.accumulation))
        if num_steps < FEW_STEPS:
            logger.warning(
                "only %d step(s), so little is learnt: lower tokens_per_batch (%d), or raise "
                "num_epochs or learning_rate",
                num_steps,
                self.tokens_per_batch,
            )
        return self.schedule_of(num_steps)


def preference_files(files: Iterable[str], inputs: Mapping[str, Path]) -> list[str | Path]:
    """Return the user's files of preferences, and that of an earlier stage `pairs`."""
    return [*files, *([inputs["pairs"] / PAIRS_FILE] if "pairs" in inputs else [])]


def on_one_process(what: str) -> None:
    """Check that no other process takes part.

    Raises: ConfigError if one does.
    """
    if parallel.num_processes() > 1:
        raise ConfigError(f"{what} runs on one process; start it without torchrun")


def load_for_tuning(source: Path, settings: TuneSettings) -> HybridLM:
    """Load a model with float32 masters, and with fresh adapters if the settings ask for them.

    Raises: ConfigError for adapters on several processes.
    """
    if settings.lora is not None:
        on_one_process("training of adapters (lora)")
    model = set_precision(load_masters(source), settings.precision)
    return model if settings.lora is None else add_lora(model, settings.lora, settings.seed)


def tune(
    model: HybridLM,
    batches: Batches,
    loss: LossFunction,
    settings: TuneSettings,
    schedule: Schedule,
    name: str,
    source: Path,
    out: Path,
    *,
    evaluate: Evaluation | None = None,
) -> TrainResult:
    """Train by the one loop and write `out/model`, adapters merged, tokenizer from `source`."""
    plan = TrainSettings.of(settings, schedule, name)
    directory, plain = model_directory(source), _plain(settings)
    return fit(model, batches, loss, plan, out, directory, evaluate=evaluate, plain=plain)


def write_tuned(model: HybridLM, settings: TuneSettings, source: Path, directory: Path) -> None:
    """Write a model as it is in the middle of tuning, adapters merged."""
    write_model(model, directory, model_directory(source), _plain(settings))


def _plain(settings: TuneSettings) -> Any:
    return dict if settings.lora is None else partial(merged_state, settings=settings.lora)


def training_metrics(result: TrainResult) -> dict[str, float]:
    """Return what every tuned stage reports: steps, tokens, speed, and its last step's figures, if
    they are known."""
    skipped = {"step", "tokens", "tokens_per_s", "elapsed_s", "learning_rate", "grad_norm"}
    last = {name: float(value) for name, value in result.last.items() if name not in skipped}
    return result.summary() | last
