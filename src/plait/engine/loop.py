"""The loop that finishes what is submitted: read prompts, decode, sample, retire."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from plait.core.errors import RequestError
from plait.engine.blocks import BlockPool
from plait.engine.generation import Generation
from plait.engine.memory_plan import MemoryPlan
from plait.engine.prefix import PrefixCache
from plait.engine.request import EngineStats
from plait.engine.runner import Runner
from plait.engine.sampler import sample, top_logprobs
from plait.engine.scheduler import Prefill, Scheduler
from plait.model.lm import HybridLM


class Loop:
    """Requests that share one state and one forward per step."""

    def __init__(
        self,
        model: HybridLM,
        plan: MemoryPlan,
        prefill_chunk_tokens: int,
        num_ids: int,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        self.plan = plan
        self._runner = Runner(model, plan, state_dtype)
        self._blocks = BlockPool(plan.num_blocks)
        self.prefix = PrefixCache(plan.num_stored, self._blocks)
        self.scheduler = Scheduler(
            self._runner, plan.num_rows, self._blocks, self.prefix, prefill_chunk_tokens
        )
        self._num_ids = num_ids
        self._num_prompt_tokens = self._num_generated = 0
        self._num_reasoning = self._num_forced_closes = 0

    @property
    def has_work(self) -> bool:
        """True while any request waits or runs."""
        return self.scheduler.has_work

    def submit(self, generation: Generation) -> None:
        """Take a request; it runs as soon as there is room."""
        self._num_prompt_tokens += len(generation.prompt_ids)
        if not generation.is_over:
            self.scheduler.submit(generation)

    def cancel(self, generation: Generation) -> None:
        """End a request and free what it holds; one that is over stays as it is."""
        if not generation.is_over:
            generation.error = RequestError("the request was cancelled")
            self.scheduler.forget_waiting(generation)
            self.scheduler.retire()

    def stats(self) -> EngineStats:
        """Return what the loop does now and has done so far."""
        scheduler = self.scheduler
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            kv_blocks_used=self._blocks.num_blocks - self._blocks.num_free,
            kv_blocks_total=self._blocks.num_blocks,
            state_slots_used=len(scheduler.running) + self.prefix.num_stored,
            state_slots_total=scheduler.num_rows + self.prefix.num_slots,
            prefix_query_tokens=scheduler.prefix_query_tokens,
            prefix_hit_tokens=scheduler.prefix_hit_tokens,
            num_preemptions=scheduler.num_preemptions,
            prompt_tokens=self._num_prompt_tokens,
            generated_tokens=self._num_generated,
            reasoning_tokens=self._num_reasoning,
            forced_closes=self._num_forced_closes,
            memory_plan=self.plan,
        )

    @torch.inference_mode()
    def step(self) -> None:
        """Give every running row a token, then let waiting prompts in and read."""
        decoding, width = self.scheduler.decode()
        if decoding:
            with self._failing(decoding):
                logits = self._runner.decode([each.next_tokens(width) for each in decoding])
                self._advance(decoding, logits)
        budget = self.scheduler.chunk_tokens
        while budget and (prefill := self.scheduler.prefill(budget)):
            with self._failing(prefill.generations):
                logits = self._read(prefill)
                self.scheduler.mark_read()
                self._advance(prefill.generations, logits)
            budget -= min(budget, sum(prefill.counts))

    def _read(self, prefill: Prefill) -> Tensor:
        """Feed prompts, score those that ask for it, and return the last logits of each row."""
        generations = prefill.generations
        pieces = [
            generation.next_tokens(count)
            for generation, count in zip(generations, prefill.counts, strict=True)
        ]
        scored = [each.params.prompt_logprobs for each in generations]
        if not any(scored):
            return self._runner.prefill(prefill.first_row, pieces)
        rows = self._runner.prefill_scored(prefill.first_row, pieces, scored)
        for generation, logits in zip(generations, rows, strict=True):
            if generation.params.prompt_logprobs:
                _score(generation, logits, self._num_ids)
        return torch.stack([logits[-1] for logits in rows])

    @contextmanager
    def _failing(self, generations: list[Generation]) -> Iterator[None]:
        """Let an exception of a forward end the requests that took part, and no others."""
        try:
            yield
        except Exception as error:
            for each in generations:
                if not each.is_over:
                    each.error = error
        self.scheduler.retire()

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
        for generation, token, logprob, top in zip(generations, *sampled, strict=True):
            before = len(generation.token_ids), generation.thinking.num_trace_tokens
            generation.accept(token, logprob, top)
            self._num_generated += len(generation.token_ids) - before[0]
            self._num_reasoning += generation.thinking.num_trace_tokens - before[1]
            self._num_forced_closes += any(generation.forced[before[0] :])


def _score(generation: Generation, logits: Tensor, num_ids: int) -> None:
    """Note what the model gave the prompt's own tokens behind those of the piece just read."""
    start = generation.num_fed - len(logits)
    known = max(len(generation.prompt_scores) - start, 0)  # of a request that was preempted
    following = generation.prompt_ids[start + 1 : generation.num_fed + 1][known:]
    if following:
        logits = logits[known : known + len(following)]
        ids = torch.tensor(following, device=logits.device)
        scores = logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(-1)
        top = top_logprobs(logits, [generation.params.top_logprobs] * len(following), num_ids)
        generation.prompt_scores += zip(scores.tolist(), top, strict=True)
