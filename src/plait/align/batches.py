"""Batches of items that must stay whole, shuffled anew in every epoch."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from plait.core.seed import mix_seed
from plait.data.loader import PackedBatch
from plait.data.pack import Sample, first_fit, pack


class EpochBatches:
    """Endless batches of whole items, as many in each as fit in `tokens_per_batch`.

    `lengths` are the items' tokens; `collate` makes a batch of the items with some indices. Batch k
    of epoch e depends on (seed, e, k) alone, so the place is two numbers.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        tokens_per_batch: int,
        seed: int,
        collate: Callable[[list[int]], Any],
    ) -> None:
        self._lengths, self._capacity, self._seed = lengths, tokens_per_batch, seed
        self._collate = collate
        self._epoch = self._index = 0
        self._groups = self._pack_epoch(0)

    @property
    def num_batches(self) -> int:
        """Batches of the present epoch; other epochs may pack into a few more or fewer."""
        return len(self._groups)

    def __next__(self) -> Any:
        if self._index == len(self._groups):
            self.load_state({"epoch": self._epoch + 1, "index": 0})
        group = self._groups[self._index]
        self._index += 1
        return self._collate(group)

    def state(self) -> dict[str, Any]:
        """Return the place as JSON values."""
        return {"epoch": self._epoch, "index": self._index}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go to a place that `state` gave."""
        if state["epoch"] != self._epoch:
            self._groups = self._pack_epoch(state["epoch"])
        self._epoch, self._index = state["epoch"], state["index"]

    def _pack_epoch(self, epoch: int) -> list[list[int]]:
        generator = np.random.Generator(np.random.PCG64(mix_seed(self._seed, "sft", epoch)))
        order = generator.permutation(len(self._lengths))
        lengths = (self._lengths[index] for index in order)
        return [
            [int(order[place]) for place in group] for group in first_fit(lengths, self._capacity)
        ]


Packing = Literal["separate", "joined", "off"]
"""How samples share rows:

    separate   one row; nothing passes from one sample to the next
    joined     one row without boundaries: a sample sees those before it, as where rows are simply
               concatenated
    off        a row for each sample

`separate` and `off` give the same loss; `off` is slower where samples are short.
"""


class SampleRows(EpochBatches):
    """Endless batches of samples, each a list of rows; which samples a batch holds does not depend
    on the packing."""

    def __init__(
        self, samples: Sequence[Sample], tokens_per_batch: int, seed: int, packing: Packing
    ) -> None:
        def collate(group: list[int]) -> list[PackedBatch]:
            chosen = [samples[index] for index in group]
            if packing == "off":
                return [pack([sample]) for sample in chosen]
            row = pack(chosen)
            if packing == "joined":
                row = row._replace(cu_seqlens=row.cu_seqlens[[0, -1]])
            return [row]

        lengths = [len(sample.ids) for sample in samples]
        super().__init__(lengths, tokens_per_batch, seed, collate)
