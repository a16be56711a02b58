"""The one training loop: batches and a loss in, a trained model and its record out.

Pretraining, fine-tuning, distillation and alignment differ in their batches and their loss and in
nothing else, so each hands `loss(model, batch) -> LossOutput` to `train`. One optimizer step is

    for each micro-batch:  total_i, weight_i = loss(model, batch_i);  backward(total_i)
    gradient = grad(sum of totals) / sum of weights;  clip by global norm;  AdamW

The division is by the weight of the whole step over all processes, so a token counts the same in
a full micro-batch, in a nearly empty one, and on any number of processes.

After every step the run can stop and go on with the same bits: the loop keeps nothing in memory
that is not in the checkpoint or a function of the step. It owns no data, no evaluation, no export.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import nn

from plait.core.config import Settings
from plait.core.errors import ConfigError, PlaitError
from plait.core.progress import Progress
from plait.train import parallel
from plait.train.checkpoint import Position, newest, resume, save_checkpoint
from plait.train.interrupt import Interrupted, StopRequest
from plait.train.metrics import Metrics
from plait.train.optim import AdamWSettings, adamw, set_learning_rate
from plait.train.schedule import Schedule
from plait.train.step import Batches, LossFunction, LossOutput, accumulate, divide_and_clip, problem

__all__ = ["Batches", "LossFunction", "LossOutput"]


Evaluation = Callable[[Any, int], Mapping[str, float]]
"""evaluate(model, step) -> scores"""


class LoopSettings(Settings):
    """How any run steps, records and saves: the part of a stage's settings that the loop reads."""

    adamw: AdamWSettings = AdamWSettings()
    """Constants of the optimizer."""
    accumulation: Annotated[int, Field(gt=0)] = 1
    """Micro-batches per optimizer step, all processes together."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest global norm of the gradient; inf for no clipping. Our choice."""
    evaluate_every_steps: Annotated[int, Field(ge=0)] = 0
    """Between evaluations, besides those at start and end; 0 for only these."""
    checkpoint_every_steps: Annotated[int, Field(gt=0)] = 100
    """Between checkpoints, besides the one at the end."""
    keep_checkpoints: Annotated[int, Field(gt=0)] = 2
    """Newest checkpoints kept; two survive damage to one."""


class TrainSettings(LoopSettings):
    """Everything the loop needs to know."""

    schedule: Schedule
    """Length and learning rate."""
    description: str = "train"
    """Name of the run in the progress line."""

    @classmethod
    def of(cls, stage: LoopSettings, schedule: Schedule, description: str) -> "TrainSettings":
        """Take the loop's part of a stage's settings."""
        fields = {name: getattr(stage, name) for name in LoopSettings.model_fields}
        return cls(schedule=schedule, description=description, **fields)

    def evaluates_at(self, step: int) -> bool:
        """Say whether an evaluation is due after `step` updates."""
        return step in (0, self.schedule.num_steps) or _divides(self.evaluate_every_steps, step)

    def checkpoints_at(self, step: int) -> bool:
        """Say whether a checkpoint is due after `step` updates."""
        return step == self.schedule.num_steps or _divides(self.checkpoint_every_steps, step)


class TrainResult(NamedTuple):
    """The end of a run."""

    position: Position
    """Steps, tokens and wall time."""
    last: dict[str, Any]
    """Line of the last step as in metrics.jsonl (loss, grad_norm, ...); empty if that is lost."""
    evaluations: dict[int, dict[str, float]]
    """Scores by step."""

    def summary(self) -> dict[str, float]:
        """Return steps, tokens, the speed of the steps and the last one's loss, if it is known."""
        loss = {"loss": float(self.last["loss"])} if self.last else {}
        return {
            "steps": float(self.position.step),
            "tokens": float(self.position.tokens),
            "tokens_per_s": self.position.tokens / self.position.steps_s,
            **loss,
        }


class DivergedError(PlaitError):
    """The loss or the gradient is not finite; the message names the batch."""


def train(
    model: nn.Module,
    batches: Batches,
    loss: LossFunction,
    settings: TrainSettings,
    out: Path,
    *,
    evaluate: Evaluation | None = None,
) -> TrainResult:
    """Train in place until `settings.schedule.num_steps`, resuming if `out` holds a checkpoint.

    Writes `out/metrics.jsonl` and `out/checkpoints/`. The first SIGINT or SIGTERM ends the run
    after the step, checkpoint or evaluation it came in, the last ones included, and a checkpoint;
    the second kills it. Evaluations leave the random generators as they were.
    Raises: Interrupted when asked to stop; DivergedError, DataError when a step cannot be made;
    CheckpointError when a checkpoint cannot be used.
    """
    _check_processes(settings)
    out.mkdir(parents=True, exist_ok=True)
    checkpoints, schedule = out / "checkpoints", settings.schedule
    optimizer = adamw(model, settings.adamw)
    position = resume(checkpoints, model, optimizer, batches)
    metrics = Metrics(out / "metrics.jsonl", position.step)
    began = time.monotonic() - position.elapsed_s
    saved = position.step  # the start needs no checkpoint
    with StopRequest() as stop, Progress(settings.description, unit="tokens") as progress:
        progress.resume(position.tokens)
        while True:
            # One thing at a time, and before each a look at whether to stop.
            step = position.step
            stopping = parallel.any_process(stop.signal_name is not None)
            if step > saved and (stopping or settings.checkpoints_at(step)):
                keep = settings.keep_checkpoints
                save_checkpoint(checkpoints, position, model, optimizer, batches, keep)
                saved = step
                continue
            if stopping:
                raise _interrupted(stop.signal_name, step, newest(checkpoints))
            due = settings.evaluates_at(step) and step not in metrics.evaluations
            if evaluate is not None and due:
                with _random_state_kept():
                    metrics.write_evaluation(step, evaluate(model, step))
                continue
            if step >= schedule.num_steps:
                return TrainResult(position, metrics.last, metrics.evaluations)

            step_began = time.monotonic()
            optimizer.zero_grad()
            sums = accumulate(model, batches, loss, settings.accumulation)
            grad_norm = divide_and_clip(model, sums.weight, settings.clip_norm)
            if found := problem(model, batches, sums, grad_norm):
                raise _diverged(f"step {step + 1}: {found}", newest(checkpoints))
            rate = schedule.rate(step)
            set_learning_rate(optimizer, rate)
            optimizer.step()

            now = time.monotonic()
            step_s = now - step_began
            tokens, steps_s = position.tokens + sums.num_tokens, position.steps_s + step_s
            position = Position(step + 1, tokens, now - began, steps_s)
            metrics.write_step(
                {
                    "step": position.step,
                    "tokens": position.tokens,
                    "loss": sums.total / sums.weight,
                    **sums.metrics,
                    "learning_rate": rate,
                    "grad_norm": grad_norm,
                    "tokens_per_s": sums.num_tokens / step_s,
                    "elapsed_s": position.elapsed_s,
                }
            )
            progress.total = position.tokens / position.step * schedule.num_steps
            progress.advance(sums.num_tokens, f"loss {sums.total / sums.weight:.3f}")


def _interrupted(signal_name: str | None, step: int, checkpoint: Path | None) -> Interrupted:
    return Interrupted(
        f"stopped by {signal_name or 'another process'} after step {step}; run again to go on "
        f"from {checkpoint or 'the start'}"
    )


def _diverged(problem: str, checkpoint: Path | None) -> DivergedError:
    return DivergedError(
        f"{problem}. The weights were not updated; last good checkpoint: "
        f"{checkpoint or 'none yet'}. Look at that data; if it is sound, lower the learning rate "
        "or lengthen the warm-up"
    )


def _check_processes(settings: TrainSettings) -> None:
    if settings.accumulation % parallel.num_processes():
        raise ConfigError(
            f"accumulation = {settings.accumulation} micro-batches cannot be shared by "
            f"{parallel.num_processes()} processes; make it a multiple of them"
        )


@contextmanager
def _random_state_kept() -> Iterator[None]:
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield


def _divides(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
