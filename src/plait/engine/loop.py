"""The loop that finishes what is submitted: read prompts, decode, sample, retire."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from plait.core.errors import RequestError
from plait.engine.generation import Generation
from plait.engine.request import EngineStats
from plait.engine.runner import Runner
from plait.engine.sampler import sample
from plait.engine.scheduler import Scheduler
from plait.model.lm import HybridLM


class Loop:
    """Requests that share one state and one forward per step.

    A loop that raised must not be used again; the model is unharmed, so a new loop can be made.
    """

    def __init__(
        self,
        model: HybridLM,
        num_rows: int,
        max_context: int,
        prefill_chunk_tokens: int,
        num_ids: int,
    ) -> None:
        self._runner = Runner(model, num_rows, max_context)
        self._scheduler = Scheduler(num_rows, prefill_chunk_tokens)
        self._num_ids = num_ids

    @property
    def has_work(self) -> bool:
        """True while any request waits or runs."""
        return self._scheduler.has_work

    def submit(self, generation: Generation) -> None:
        """Take a request; it runs as soon as a row is free."""
        if generation.finish_reason is None:
            self._scheduler.submit(generation)

    def cancel(self, generation: Generation) -> None:
        """End a request and free its row; one that is over stays as it is."""
        if not generation.is_over:
            generation.error = RequestError("the request was cancelled")
            self._retire()

    def stats(self) -> EngineStats:
        """Return what the loop does now and has done so far."""
        scheduler = self._scheduler
        return EngineStats(
            len(scheduler.running), len(scheduler.waiting), 0, 0, len(scheduler.running),
            scheduler.num_rows, 0, 0, 0, 0, 0, 0, 0, None,  # pyright: ignore
        )  # fmt: skip

    @torch.inference_mode()
    def step(self) -> None:
        """Give every running row a token, then let waiting prompts into the free rows and read."""
        if decoding := self._scheduler.decoding:
            # Usually 1. More when every row has forced tokens to read, as a lone request has.
            width = min(generation.num_pending for generation in decoding)
            with self._failing(decoding):
                logits = self._runner.decode([each.next_tokens(width) for each in decoding])
                self._advance(decoding, logits)
        if prefill := self._scheduler.admit():
            with self._failing(prefill.generations):
                pieces = [
                    generation.next_tokens(count)
                    for generation, count in zip(prefill.generations, prefill.counts, strict=True)
                ]
                logits = self._runner.prefill(prefill.first_row, pieces, prefill.num_continued)
                self._scheduler.mark_read()
                self._advance(prefill.generations, logits)

    @contextmanager
    def _failing(self, generations: list[Generation]) -> Iterator[None]:
        """Let an exception of a forward end the requests that took part, and no others."""
        try:
            yield
        except Exception as error:
            for each in generations:
                if not each.is_over:
                    each.error = error
        self._retire()

    def _retire(self) -> None:
        for move in self._scheduler.retire():
            self._runner.move(*move)

    def _advance(self, generations: list[Generation], logits: Tensor) -> None:
        """Sample for those that have read all they hold."""
        rows = [row for row, each in enumerate(generations) if not each.num_pending]
        if not rows:
            return
        if len(rows) < len(generations):
            logits = logits[torch.tensor(rows, device=logits.device)]
            generations = [generations[row] for row in rows]
        sampled = sample(
            logits,
            [each.params for each in generations],
            [each.next_uniform() for each in generations],
            [each.edit() for each in generations],
            self._num_ids,
        )
        for generation, token, *scores in zip(generations, *sampled, strict=True):
            generation.accept(token, *scores)
