"""What a request changes in the logits before a token is chosen.

In this order: logit_bias, repetition_penalty, frequency_penalty and presence_penalty. Each works
on the logits of its own row, so a token never depends on the batch. The definitions are those of
OpenAI's API; repetition_penalty (arXiv 1909.05858) counts the prompt too, the other two do not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from plait.engine.request import SamplingParams


class LogitEdits:
    """Biases and penalties of one request, with the counts of tokens that they need."""

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], num_ids: int) -> None:
        self._params = params
        self._bias_ids = torch.tensor(list(params.logit_bias), dtype=torch.int64)
        self._bias = torch.tensor(list(params.logit_bias.values()))
        self._penalises = bool(params.frequency_penalty or params.presence_penalty)
        self._counts = torch.zeros(num_ids if self._penalises else 0)
        self._seen: Tensor | None = None
        if params.repetition_penalty != 1:
            self._seen = torch.zeros(num_ids, dtype=torch.bool)
            self._seen[torch.tensor(prompt_ids)] = True
        self.is_active = bool(params.logit_bias) or self._penalises or self._seen is not None

    def count(self, token: int) -> None:
        """Take note of a generated token."""
        if self._penalises:
            self._counts[token] += 1
        if self._seen is not None:
            self._seen[token] = True

    def apply(self, row: Tensor) -> None:
        """Change the logits (V,) of the next token in place."""
        if len(self._bias_ids):
            row[self._bias_ids.to(row.device)] += self._bias.to(row)
        if self._seen is not None:
            seen, penalty = self._seen.to(row.device), self._params.repetition_penalty
            row.copy_(torch.where(seen, torch.where(row > 0, row / penalty, row * penalty), row))
        if self._penalises:
            counts = self._counts.to(row)
            row -= self._params.frequency_penalty * counts
            row -= self._params.presence_penalty * (counts > 0)
