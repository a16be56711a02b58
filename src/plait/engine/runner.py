"""Feeds tokens to the model and keeps the tensors: rows of states, blocks, stored states.

Three shapes of forward: one token or a few for every decoding row at once (B, T); prompts of
unequal length packed into one row with `cu_seqlens`; one prompt, or several of one length, as plain
rows. Which row is whose is the scheduler's business.
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from plait.core.errors import CapacityError
from plait.engine.memory_plan import MemoryPlan
from plait.model.lm import HybridLM
from plait.model.state import HybridState


class Runner:
    """A model with the state that a memory plan allows.

    Raises: CapacityError if the memory cannot be had.
    """

    def __init__(
        self, model: HybridLM, plan: MemoryPlan, state_dtype: torch.dtype | None = None
    ) -> None:
        weight = model.backbone.embeddings.weight
        self.model = model
        self.device = weight.device
        options = {
            "dtype": model.compute_dtype or weight.dtype,
            "ssm_dtype": state_dtype,
            "device": self.device,
        }
        try:
            self.state = HybridState.paged(
                model.spec, plan.num_rows, plan.num_blocks + 1, plan.max_context, **options
            )
            # Stored prefixes keep their keys and values in blocks of the state.
            self.stored = HybridState.paged(model.spec, plan.num_stored, 1, 0, **options)
        except RuntimeError as error:
            raise CapacityError(
                f"the memory that was planned for cannot be had ({error}): lower memory_bytes, "
                f"max_num_seqs or max_context\n{plan.describe()}"
            ) from None

    def start(self, row: int, slot: int | None) -> None:
        """Make a row new, or the stored state `slot`; it owns no blocks then."""
        self.state.reset_row(row)
        if slot is not None:
            self.stored.copy_row_to(slot, self.state, row)

    def assign(self, row: int, start: int, blocks: Sequence[int], *, are_new: bool = True) -> None:
        """Let `blocks` be blocks start, start + 1, ... of a row."""
        if blocks and self.state.key:
            self.state.assign(row, start, blocks, are_new=are_new)

    def swap(self, first: int, second: int) -> None:
        """Exchange two rows."""
        self.state.swap_rows(first, second)

    def store(self, row: int, slot: int) -> None:
        """Copy the state of a row into a slot."""
        self.state.copy_row_to(row, self.stored, slot)

    def decode(self, pieces: list[list[int]]) -> Float[Tensor, "S V"]:
        """Let rows 0, 1, ... read pieces of one length each and return their last logits."""
        return self._read(0, pieces)

    def prefill(self, first_row: int, pieces: list[list[int]]) -> Float[Tensor, "S V"]:
        """Let rows first_row, first_row + 1, ... read a piece each and return their last logits."""
        if len({len(piece) for piece in pieces}) == 1:
            return self._read(first_row, pieces)
        ends = torch.tensor(list(itertools.accumulate(map(len, pieces))), device=self.device)
        return self._read_packed(first_row, pieces, ends - 1)

    def prefill_scored(
        self, first_row: int, pieces: list[list[int]], scored: list[bool]
    ) -> list[Tensor]:
        """Do what `prefill` does, but return the logits (T, V) of every token of `scored` rows;
        of the others those of the last."""
        ends = list(itertools.accumulate(map(len, pieces)))
        places = [
            range(end - (len(piece) if is_scored else 1), end)
            for end, piece, is_scored in zip(ends, pieces, scored, strict=True)
        ]
        wanted = torch.tensor([*itertools.chain.from_iterable(places)], device=self.device)
        return list(self._read_packed(first_row, pieces, wanted).split([*map(len, places)]))

    def _read(self, first_row: int, pieces: list[list[int]]) -> Tensor:
        tokens = torch.tensor(pieces, device=self.device)
        num_rows, length = tokens.shape
        last = None
        if length > 1:
            last = torch.arange(1, num_rows + 1, device=self.device) * length - 1
        state = self.state.rows(first_row, first_row + num_rows)
        return self.model.forward(tokens, state=state, logits_for=last).flatten(0, -2)

    def _read_packed(self, first_row: int, pieces: list[list[int]], logits_for: Tensor) -> Tensor:
        bounds = [0, *itertools.accumulate(map(len, pieces))]
        return self.model.forward(
            torch.tensor([[*itertools.chain.from_iterable(pieces)]], device=self.device),
            cu_seqlens=torch.tensor(bounds, dtype=torch.int32, device=self.device),
            state=self.state.rows(first_row, first_row + len(pieces)),
            logits_for=logits_for,
        )
