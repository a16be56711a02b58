"""The learning rate as a pure function of the step: warm-up, stable, decay (WSD).

    rate
    peak   ____________________
          /                    \\          decay: linear or a half cosine
         /                      \\____ final
        0   warmup                 decay  num_steps

With `decay_steps = 0` it is a constant, with `decay_steps = num_steps - warmup_steps` and shape
"cosine" the usual cosine: there is no other schedule because none is needed. Nothing is remembered
between steps, so a resumed run needs no schedule state.

Source: arXiv 2508.14444 section 2.5 gives peak, floor and both lengths; it does not give the shape
of the decay, so "linear" is our choice.
"""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from plait.core.config import Settings
from plait.core.errors import ConfigError


class Schedule(Settings):
    """Length of a run in optimizer steps and its learning rate.

    Raises: ConfigError if warm-up and decay together are longer than the run.
    """

    num_steps: Annotated[int, Field(gt=0)]
    """Optimizer steps of the whole run."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Peak."""
    min_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Rate of the last step, when there is a decay."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear rise; the step after them is the first at the peak."""
    decay_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of the fall to min_learning_rate, the last ones of the run."""
    decay_shape: Literal["linear", "cosine"] = "linear"
    """Path of the fall."""

    @model_validator(mode="after")
    def _check_lengths(self) -> "Schedule":
        if self.warmup_steps + self.decay_steps > self.num_steps:
            raise ConfigError(
                f"warm-up ({self.warmup_steps} steps) and decay ({self.decay_steps} steps) are "
                f"longer than the run ({self.num_steps} steps); shorten one or train longer"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ConfigError(
                f"min_learning_rate {self.min_learning_rate} is above learning_rate "
                f"{self.learning_rate}; it is where the decay ends"
            )
        return self

    def rate(self, step: int) -> float:
        """Return the learning rate of the update that follows `step` finished updates.

        warm-up: peak * (step + 1) / (warmup_steps + 1);  decay: from peak, `min_learning_rate`
        exactly at the last update.
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        into_decay = step + 1 - (self.num_steps - self.decay_steps)
        if into_decay <= 0 or self.decay_steps == 0:
            return self.learning_rate
        progress = min(into_decay / self.decay_steps, 1.0)
        left = (
            1 - progress if self.decay_shape == "linear" else (1 + math.cos(math.pi * progress)) / 2
        )
        return self.min_learning_rate + left * (self.learning_rate - self.min_learning_rate)
