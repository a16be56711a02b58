"""One optimizer step's gradient: micro-batches added up, divided by their weight, clipped."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from plait.core.errors import DataError
from plait.train import parallel
from plait.train.checkpoint import Resumable


class LossOutput(NamedTuple):
    """What a loss says about one micro-batch."""

    total: Tensor
    """Scalar: the sum over weighted tokens (or pairs, or rollouts), not their mean."""
    weight: Tensor | float
    """Sum of the weights; the gradient is divided by its sum over the step."""
    metrics: Mapping[str, Tensor | float] = {}
    """Figures to record; the mean over the step's micro-batches is written, of a name that begins
    with `max_` the largest."""
    num_tokens: int = 0
    """Tokens run through the model, for the record of speed and progress."""


LossFunction = Callable[[Any, Any], LossOutput]
"""loss(model, batch)"""


@runtime_checkable
class Batches(Resumable, Protocol):
    """An endless source of batches of any type, with a place that can be saved."""

    def __next__(self) -> Any:
        """Return the next micro-batch."""
        ...


@runtime_checkable
class Described(Protocol):
    """A source of batches that can say what a batch is made of."""

    def describe(self, state: dict[str, Any]) -> str:
        """Name the documents or categories of the batch drawn at a place."""
        ...


class StepSums(NamedTuple):
    """Sums over all micro-batches of a step; of `metrics`, means or maxima."""

    total: float
    weight: float
    num_tokens: int
    metrics: dict[str, float]
    totals: list[float]
    """Of each micro-batch."""
    places: list[dict[str, Any]]
    """Of each micro-batch: where in the data it was drawn."""


def accumulate(
    model: nn.Module, batches: Batches, loss: LossFunction, num_micro_batches: int
) -> StepSums:
    """Draw micro-batches, add up their gradients and figures over all processes.

    Every process draws all batches and works on its share.
    Raises: DataError if the data ends or nothing in the step carries loss weight.
    """
    rows: dict[int, Tensor] = {}
    places: list[dict[str, Any]] = []
    names: list[str] = []
    for index in range(num_micro_batches):
        places.append(batches.state())
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
    total, weight, num_tokens, *sums = table.sum(0).tolist()
    if weight <= 0:
        raise DataError(
            f"no token carries loss weight in the batch drawn at {_origin(batches, places[0])}"
        )
    maxima = table.amax(0).tolist()[3:]
    metrics = {
        name: largest if name.startswith("max_") else sum_ / num_micro_batches
        for name, sum_, largest in zip(names, sums, maxima, strict=True)
    }
    return StepSums(total, weight, int(num_tokens), metrics, table[:, 0].tolist(), places)


def _draw(batches: Batches) -> Any:
    try:
        return next(batches)
    except StopIteration:
        raise DataError(
            "the data ended before the run; give more documents or train fewer steps"
        ) from None


def _origin(batches: Batches, place: dict[str, Any]) -> str:
    """Name a place in the data, and what is there if the source can say."""
    made_of = f" ({batches.describe(place)})" if isinstance(batches, Described) else ""
    return json.dumps(place) + made_of


def _figures(output: LossOutput) -> Tensor:
    values = (output.total.detach(), output.weight, output.num_tokens, *output.metrics.values())
    device = output.total.device
    return torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in values])


def divide_and_clip(model: nn.Module, weight: float, clip_norm: float) -> float:
    """Divide the gradients by `weight`, clip them, and return their norm between the two."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = float(parallel.whole(get_total_norm(gradients))) / weight
    scale = clip_norm / norm if norm > clip_norm else 1.0
    for gradient in gradients:
        gradient.mul_(scale / weight)
    return norm


def problem(model: nn.Module, batches: Batches, sums: StepSums, grad_norm: float) -> str | None:
    """Say what is not finite and which batch made it so."""
    for index, total in enumerate(sums.totals):
        if not math.isfinite(total):
            drawn = _origin(batches, sums.places[index])
            which = f"micro-batch {index + 1} of {len(sums.totals)}"
            return f"the loss of {which} is {total}; it was drawn at {drawn}"
    if math.isfinite(grad_norm):
        return None
    bad = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parallel.whole(parameter.grad).isfinite().all()
    ]
    return (
        f"the gradient's norm is {grad_norm}, first in {bad[0] if bad else 'no single tensor'}; "
        f"its {len(sums.totals)} micro-batch(es) begin at {_origin(batches, sums.places[0])}"
    )
