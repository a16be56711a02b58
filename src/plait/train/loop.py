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

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from plait.core.config import Settings
from plait.core.errors import ConfigError, DataError, PlaitError
from plait.core.progress import Progress
from plait.train import parallel
from plait.train.checkpoint import Position, Resumable, newest, resume, save_checkpoint
from plait.train.interrupt import Interrupted, StopRequest
from plait.train.metrics import Metrics
from plait.train.optim import AdamWSettings, adamw, set_learning_rate
from plait.train.schedule import Schedule


class LossOutput(NamedTuple):
    """What a loss says about one micro-batch."""

    total: Tensor
    """Scalar: the sum over weighted tokens (or pairs, or rollouts), not their mean."""
    weight: Tensor | float
    """Sum of the weights; the gradient is divided by its sum over the step."""
    metrics: Mapping[str, Tensor | float] = {}
    """Figures to record; the mean over the step's micro-batches is written."""
    num_tokens: int = 0
    """Tokens run through the model, for the record of speed and progress."""


LossFunction = Callable[[Any, Any], LossOutput]
"""loss(model, batch)"""
Evaluation = Callable[[Any, int], Mapping[str, float]]
"""evaluate(model, step) -> scores"""


class Batches(Resumable, Protocol):
    """An endless source of batches of any type, with a place that can be saved."""

    def __next__(self) -> Any:
        """Return the next micro-batch."""
        ...


class TrainSettings(Settings):
    """How a run steps, records and saves."""

    schedule: Schedule
    """Length and learning rate."""
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
    description: str = "train"
    """Name of the run in the progress line."""

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
    """Line of the last step as in metrics.jsonl: loss, grad_norm, ..."""
    evaluations: dict[int, dict[str, float]]
    """Scores by step."""


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
    after a checkpoint; the second kills it. Evaluations leave the random generators as they were.
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
    with StopRequest() as stop, Progress(settings.description, unit="tokens") as progress:
        progress.resume(position.tokens)
        while True:
            step = position.step
            due = settings.evaluates_at(step) and step not in metrics.evaluations
            if evaluate is not None and due:
                with _random_state_kept():
                    metrics.write_evaluation(step, evaluate(model, step))
            if step == schedule.num_steps:
                return TrainResult(position, metrics.last, metrics.evaluations)

            step_began, place = time.monotonic(), batches.state()
            optimizer.zero_grad()
            sums = _accumulate(model, batches, loss, settings.accumulation)
            _check_sums(sums, step, place, checkpoints)
            grad_norm = _divide_and_clip(model, sums.weight, settings.clip_norm)
            _check_gradient(model, grad_norm, step, place, checkpoints)
            rate = schedule.rate(step)
            set_learning_rate(optimizer, rate)
            optimizer.step()

            now = time.monotonic()
            position = Position(step + 1, position.tokens + sums.num_tokens, now - began)
            metrics.write_step(
                {
                    "step": position.step,
                    "tokens": position.tokens,
                    "loss": sums.total / sums.weight,
                    **sums.metrics,
                    "learning_rate": rate,
                    "grad_norm": grad_norm,
                    "tokens_per_s": sums.num_tokens / (now - step_began),
                    "elapsed_s": position.elapsed_s,
                }
            )
            progress.total = position.tokens / position.step * schedule.num_steps
            progress.advance(sums.num_tokens, f"loss {sums.total / sums.weight:.3f}")

            stopping = parallel.any_process(stop.signal_name is not None)
            if stopping or settings.checkpoints_at(position.step):
                keep = settings.keep_checkpoints
                save_checkpoint(checkpoints, position, model, optimizer, batches, keep)
            if stopping:
                raise Interrupted(
                    f"stopped by {stop.signal_name or 'another process'} after step "
                    f"{position.step}; run again to go on from {newest(checkpoints)}"
                )


class _StepSums(NamedTuple):
    """Sums over all micro-batches of a step; of `metrics`, means."""

    total: float
    weight: float
    num_tokens: int
    metrics: dict[str, float]
    totals: list[float]
    """Of each micro-batch."""


def _accumulate(
    model: nn.Module, batches: Batches, loss: LossFunction, num_micro_batches: int
) -> _StepSums:
    """Add up gradients and figures; every process draws all batches and works on its share."""
    rows: dict[int, Tensor] = {}
    names: list[str] = []
    for index in range(num_micro_batches):
        batch = _draw(batches)
        if index % parallel.num_processes() == parallel.process_index():
            output = loss(model, batch)
            output.total.backward()
            names = list(output.metrics)
            rows[index] = _figures(output)
    some = next(iter(rows.values()))
    table = some.new_zeros(num_micro_batches, len(some))
    for index, row in rows.items():
        table[index] = row
    table = parallel.summed(table).cpu()
    total, weight, num_tokens, *others = table.sum(0).tolist()
    means = {name: value / num_micro_batches for name, value in zip(names, others, strict=True)}
    return _StepSums(total, weight, int(num_tokens), means, table[:, 0].tolist())


def _draw(batches: Batches) -> Any:
    try:
        return next(batches)
    except StopIteration:
        raise DataError(
            "the data ended before the run; give more documents or train fewer steps"
        ) from None


def _figures(output: LossOutput) -> Tensor:
    values = (output.total.detach(), output.weight, output.num_tokens, *output.metrics.values())
    device = output.total.device
    return torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in values])


def _divide_and_clip(model: nn.Module, weight: float, clip_norm: float) -> float:
    """Divide the gradients by `weight`, clip them, and return their norm between the two."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = float(parallel.whole(get_total_norm(gradients))) / weight
    scale = clip_norm / norm if norm > clip_norm else 1.0
    for gradient in gradients:
        gradient.mul_(scale / weight)
    return norm


def _check_processes(settings: TrainSettings) -> None:
    if settings.accumulation % parallel.num_processes():
        raise ConfigError(
            f"accumulation = {settings.accumulation} micro-batches cannot be shared by "
            f"{parallel.num_processes()} processes; make it a multiple of them"
        )


def _check_sums(sums: _StepSums, step: int, place: dict[str, Any], checkpoints: Path) -> None:
    for index, total in enumerate(sums.totals):
        if not math.isfinite(total):
            where = f"micro-batch {index + 1} of {len(sums.totals)}"
            raise _diverged(f"the loss is {total} in {where}", step, place, checkpoints)
    if sums.weight <= 0:
        raise DataError(
            f"step {step + 1}: no token carries loss weight in the {len(sums.totals)} "
            f"micro-batch(es) drawn at {json.dumps(place)}; check the weights of this data"
        )


def _check_gradient(
    model: nn.Module, norm: float, step: int, place: dict[str, Any], checkpoints: Path
) -> None:
    if not math.isfinite(norm):
        bad = [
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
            and not bool(parallel.whole(parameter.grad).isfinite().all())
        ]
        found = f"the gradient's norm is {norm} (first not finite: {', '.join(bad[:3]) or 'none'})"
        raise _diverged(found, step, place, checkpoints)


def _diverged(found: str, step: int, place: dict[str, Any], checkpoints: Path) -> DivergedError:
    saved = newest(checkpoints)
    return DivergedError(
        f"step {step + 1}: {found}. The step's batches begin at loader place {json.dumps(place)}. "
        f"Weights were not updated; last good checkpoint: {saved or 'none yet'}. "
        "Look at that data; if it is sound, lower the learning rate or lengthen the warm-up"
    )


@contextmanager
def _random_state_kept() -> Iterator[None]:
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield


def _divides(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
