"""One request while it runs: its tokens, its trace, its text and when it is over.

A generation is driven from outside: the loop feeds `next_tokens` to the model and hands each
sampled token to `accept`. Forced tokens of the thinking budget are appended here and then fed like
a prompt.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from plait.core.errors import PlaitError, RequestError
from plait.engine.budget import Phase, Thinking, phase_after, thinking_limits
from plait.engine.edits import LogitEdits
from plait.engine.request import Completion, FinishReason, SamplingParams, TokenLogprob
from plait.engine.sampler import Edit
from plait.engine.text import decode, find_first, num_held_bytes
from plait.engine.vocabulary import Vocabulary, check_ids

_UNIFORMS_AT_ONCE = 64


class Generation:
    """The state of one request.

    Raises: RequestError if the prompt is empty or does not fit in `max_context`, or the prompt or
    the parameters hold unknown ids.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        vocabulary: Vocabulary,
        max_context: int,
    ) -> None:
        self.prompt_ids = list(prompt_ids)
        self.params = params
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[list[TokenLogprob]] = []
        self.forced: list[bool] = []
        self.prompt_scores: list[tuple[float, list[TokenLogprob]]] = []
        """Of prompt tokens 1, 2, ..., as far as read; filled if the request asks for it."""
        self.num_cached_tokens = 0
        self.num_fed = 0
        """Tokens of prompt and output that the model has read."""
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        """Why the generation failed; it is over then, without a result."""
        self._vocabulary = vocabulary
        num_ids = len(vocabulary.token_bytes)
        for name in ("logit_bias", "stop_token_ids"):
            check_ids(name, getattr(params, name), num_ids)
        self._max_tokens = _room(self.prompt_ids, params, vocabulary, max_context)
        ends = frozenset() if params.ignore_eos else vocabulary.end_ids
        self._stop_ids = ends | set(params.stop_token_ids)
        self._stop_id_list = torch.tensor(sorted(self._stop_ids), dtype=torch.int64)
        self._uniforms = _uniforms(params)
        self._edits = LogitEdits(params, self.prompt_ids, num_ids)
        self._matcher = vocabulary.grammars.matcher(params.grammar) if params.grammar else None
        self._stops = [text.encode() for text in params.stop]
        self._content_start: int | None = None
        self._searched = 0
        """Bytes of output in which no stop string ends."""
        self._stop_at: int | None = None

        last_turn = vocabulary.last_turn(self.prompt_ids)
        self.thinking = Thinking(
            phase_after(last_turn),
            thinking_limits(
                params.model_copy(update={"max_tokens": self._max_tokens}),
                vocabulary.num_close_tokens,
            ),
            on_new_line=last_turn.endswith(b"\n"),
        )
        self._force()

    @property
    def num_pending(self) -> int:
        """Tokens the model has yet to read before the next one can be sampled."""
        return len(self.prompt_ids) + len(self.token_ids) - self.num_fed

    def next_tokens(self, count: int) -> list[int]:
        """Return the next `count` tokens to feed, and count them as fed."""
        start, self.num_fed = self.num_fed, self.num_fed + count
        if start >= len(self.prompt_ids):
            start -= len(self.prompt_ids)
            return self.token_ids[start : start + count]
        return (self.prompt_ids + self.token_ids)[start : start + count]

    def next_uniform(self) -> float:
        """Return the number in [0, 1) that decides the next token; a greedy request uses none."""
        return next(self._uniforms) if self.params.temperature > 0 else 0.0

    @property
    def special_positions(self) -> list[int]:
        """Places of the prompt's special tokens, which begin and end messages."""
        pieces = self._vocabulary.token_bytes
        return [place for place, id_ in enumerate(self.prompt_ids) if not pieces[id_]]

    @property
    def is_over(self) -> bool:
        """True once nothing more will come: finished or failed."""
        return self.finish_reason is not None or self.error is not None

    def edit(self) -> Edit | None:
        """Return what to do to the logits before the next token is chosen, or None."""
        bans = self._bans()
        in_grammar = self._matcher is not None and self._in_answer
        if not (bans or in_grammar or self._edits.is_active):
            return None

        def edit(row: Tensor) -> None:
            self._edits.apply(row)
            for ids in bans:
                row[ids.to(row.device)] = -torch.inf
            if in_grammar and self._matcher is not None:
                row[~self._matcher.allowed().to(row.device)] = -torch.inf

        return edit

    def accept(
        self, token: int | None, logprob: float, top_logprobs: Sequence[TokenLogprob] = ()
    ) -> None:
        """Take a sampled token; it may end the output or the trace. None fails the generation."""
        if token is None:
            self.error = PlaitError(
                "no token can be chosen: the model gave logits that are not finite (its weights "
                "hold NaN or infinity, or its activations overflow in this dtype; try float32 or "
                "bfloat16), or biases and grammar leave no token"
            )
            return
        in_answer = self._in_answer
        self._append(token, logprob, top_logprobs, forced=False)
        if self._matcher is not None and in_answer and token not in self._stop_ids:
            try:
                self._matcher.consume(token)
            except PlaitError as error:
                self.error = error
                return
            if self._matcher.is_complete and self.finish_reason is None:
                self._finish("stop")
        if self.finish_reason is None:
            self._force()

    def completion(self) -> Completion:
        """Return the result of a finished generation.

        Raises: its own error if it failed.
        """
        if self.error is not None:
            raise self.error
        if self.finish_reason is None:
            raise ValueError("the generation is not finished")
        params = self.params
        scores = self.prompt_scores if params.prompt_logprobs else None
        thinking, end = self.thinking, self._text_end
        trace = None
        if thinking.trace_start is not None:
            trace = bytes(thinking.output[thinking.trace_start : thinking.trace_end])
        answer = (
            b"" if thinking.answer_start is None else thinking.output[thinking.answer_start : end]
        )
        return Completion(
            prompt_ids=self.prompt_ids,
            token_ids=self.token_ids,
            logprobs=self.logprobs if params.logprobs else None,
            forced=self.forced,
            text=decode(bytes(thinking.output[:end])),
            reasoning=None if trace is None else decode(trace, strip=True),
            content=decode(bytes(answer), strip=self.strips_answer),
            finish_reason=self.finish_reason,
            num_reasoning_tokens=thinking.num_trace_tokens,
            num_closing_tags=thinking.num_closing_tags,
            num_cached_tokens=self.num_cached_tokens,
            top_logprobs=self.top_logprobs if params.top_logprobs else None,
            prompt_logprobs=None if scores is None else [None, *(score for score, _ in scores)],
            prompt_top_logprobs=None if scores is None else [[], *(top for _, top in scores)],
        )

    @property
    def strips_answer(self) -> bool:
        """True if the answer is a part of a turn and not plain continued text."""
        return self.thinking.phase is not Phase.OUTSIDE

    def certain_answer_end(self) -> int:
        """Return the offset in the output up to which the answer cannot change any more."""
        output = self.thinking.output
        held = num_held_bytes(output, self._stops) if self.finish_reason is None else 0
        return self._text_end - held

    @property
    def _text_end(self) -> int:
        return len(self.thinking.output) if self._stop_at is None else self._stop_at

    @property
    def _in_answer(self) -> bool:
        # A grammar leaves no room to open a trace, so what is outside of one is the answer.
        return self.thinking.phase in (Phase.ANSWER, Phase.OUTSIDE)

    def _bans(self) -> list[Tensor]:
        vocabulary, params = self._vocabulary, self.params
        bans = []
        if not params.free_think_tags:
            bans.append(vocabulary.bans.banned(self.thinking))
        if self._matcher is not None:
            bans.append(vocabulary.bans.beginning_answer(self.thinking))
        elif len(self.token_ids) < params.min_tokens:
            bans.append(self._stop_id_list)
        return [ids for ids in bans if ids is not None]

    def _append(
        self,
        token: int,
        logprob: float,
        top_logprobs: Sequence[TokenLogprob] = (),
        *,
        forced: bool,
    ) -> None:
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self.top_logprobs.append(list(top_logprobs))
        self._edits.count(token)
        self.forced.append(forced)
        if token in self._stop_ids and not forced:
            self._finish("stop")
            return
        self.thinking.observe(self._vocabulary.token_bytes[token])
        if self._stops and self._stop_string_came():
            self._finish("stop")
        elif len(self.token_ids) >= self._max_tokens:
            self._finish("length")

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        if self.thinking.phase is Phase.OUTSIDE:
            self.thinking.answer_start = 0

    def _force(self) -> None:
        if self.thinking.phase is Phase.FORCING:
            for token in self._vocabulary.closing_ids(self.thinking.forced_text):
                if self.finish_reason is None:
                    self._append(token, 0.0, forced=True)

    def _stop_string_came(self) -> bool:
        if self._content_start is None:
            self._content_start = self._find_content()
        if self._content_start is None:
            return False
        output = self.thinking.output
        self._stop_at = find_first(output, self._stops, self._searched, self._content_start)
        self._searched = len(output)
        return self._stop_at is not None

    def _find_content(self) -> int | None:
        """Return where the answer begins as the caller sees it, white space before it cut off."""
        start = self.thinking.answer_start
        if start is None or not self.strips_answer:
            return start
        content = self.thinking.output[start:].lstrip()
        return len(self.thinking.output) - len(content) if content else None


def _room(
    prompt_ids: list[int], params: SamplingParams, vocabulary: Vocabulary, max_context: int
) -> int:
    """Return how many tokens may follow the prompt."""
    num_prompt = len(prompt_ids)
    if not prompt_ids:
        raise RequestError("the prompt is empty: give at least one token")
    check_ids("the prompt", prompt_ids, len(vocabulary.token_bytes))
    room = max_context - num_prompt
    if room < 1:
        raise RequestError(
            f"the prompt has {num_prompt} tokens and the context holds {max_context}, of which at "
            "least one is needed for the output: shorten the prompt or raise max_context"
        )
    if params.max_tokens is not None and params.max_tokens > room:
        raise RequestError(
            f"{num_prompt} tokens of prompt + max_tokens = {params.max_tokens} make "
            f"{num_prompt + params.max_tokens}, the context holds {max_context}: lower max_tokens "
            f"to {room} or raise max_context"
        )
    return room if params.max_tokens is None else params.max_tokens


def _uniforms(params: SamplingParams) -> Iterator[float]:
    """Return the random numbers of a request; only sampling without a seed touches torch's own."""
    seed = params.seed
    if seed is None:
        seed = int(torch.randint(2**63 - 1, ())) if params.temperature > 0 else 0
    return _seeded(seed)


def _seeded(seed: int) -> Iterator[float]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        # A block at once: a call costs more than a number.
        yield from torch.rand(_UNIFORMS_AT_ONCE, generator=generator, dtype=torch.float64).tolist()
