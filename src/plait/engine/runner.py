"""Feeds tokens to the model and keeps the rows of its state.

Three shapes of forward: one token or a few for every decoding row at once (B, T); prompts of
unequal length packed into one row with `cu_seqlens`; one prompt, or several of one length, as plain
rows. All return only the logits of the last token of each sequence.
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from plait.core.errors import CapacityError
from plait.model.lm import HybridLM
from plait.model.state import HybridState

_FIRST_CAPACITY_TOKENS = 256


class Runner:
    """A model with a state of `num_rows` rows that grows up to `max_context` tokens each.

    Raises: CapacityError if the memory for the state cannot be had.
    """

    def __init__(self, model: HybridLM, num_rows: int, max_context: int) -> None:
        weight = model.backbone.embeddings.weight
        self.model = model
        self.device = weight.device
        self.max_context = max_context
        capacity = min(_FIRST_CAPACITY_TOKENS, max_context)
        try:
            self.state = HybridState.empty(
                model.spec,
                num_rows,
                capacity,
                dtype=model.compute_dtype or weight.dtype,
                device=self.device,
            )
        except RuntimeError as error:
            raise _no_memory(num_rows, capacity, error) from None

    def prefill(
        self, first_row: int, pieces: list[list[int]], num_continued: int
    ) -> Float[Tensor, "S V"]:
        """Let rows first_row, first_row + 1, ... read a piece each and return their last logits.

        All but the first `num_continued` rows start from nothing.
        """
        last_row = first_row + len(pieces)
        for row in range(first_row + num_continued, last_row):
            self.state.reset_row(row)
        if len({len(piece) for piece in pieces}) == 1:
            return self._read(first_row, pieces)
        self._reserve(first_row, pieces)
        ends = list(itertools.accumulate(map(len, pieces)))
        tokens = list(itertools.chain.from_iterable(pieces))
        return self.model.forward(
            torch.tensor([tokens], device=self.device),
            cu_seqlens=torch.tensor([0, *ends], dtype=torch.int32, device=self.device),
            state=self.state.rows(first_row, last_row),
            logits_for=torch.tensor(ends, device=self.device) - 1,
        )

    def decode(self, pieces: list[list[int]]) -> Float[Tensor, "S V"]:
        """Let rows 0, 1, ... read pieces of one length each and return their last logits."""
        return self._read(0, pieces)

    def move(self, source: int, target: int) -> None:
        """Copy a row of the state over another."""
        self.state.copy_row(source, target)

    def _read(self, first_row: int, pieces: list[list[int]]) -> Float[Tensor, "S V"]:
        self._reserve(first_row, pieces)
        tokens = torch.tensor(pieces, device=self.device)
        num_rows, length = tokens.shape
        last = None
        if length > 1:
            last = torch.arange(1, num_rows + 1, device=self.device) * length - 1
        state = self.state.rows(first_row, first_row + num_rows)
        return self.model.forward(tokens, state=state, logits_for=last).flatten(0, -2)

    def _reserve(self, first_row: int, pieces: list[list[int]]) -> None:
        """Make room for the pieces; the capacity doubles, so growing costs little per token."""
        held = self.state.lengths[first_row : first_row + len(pieces)].tolist()
        needed = max(length + len(piece) for length, piece in zip(held, pieces, strict=True))
        capacity = self.state.capacity_tokens
        if capacity is None or needed <= capacity:
            return
        while capacity < needed:
            capacity *= 2
        capacity = max(needed, min(capacity, self.max_context))
        try:
            self.state.reserve(capacity)
        except RuntimeError as error:
            raise _no_memory(self.state.num_sequences, capacity, error) from None


def _no_memory(num_rows: int, capacity: int, error: RuntimeError) -> CapacityError:
    return CapacityError(
        f"no memory for the state of {num_rows} sequences of {capacity} tokens ({error}): lower "
        "max_num_seqs, max_context or max_tokens"
    )
