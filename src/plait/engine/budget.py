"""The thinking budget: a state machine over the tokens of one request.

    OUTSIDE   the prompt opened no trace; a trace begins if the output starts with <think>
    THINKING  inside the trace, budget not spent
    GRACE     budget spent, waiting for the end of a line (rule `newline`)
    FORCING   the trace must be closed now: `forced_text` is what to append
    ANSWER    behind the closing tag, or thinking was switched off in the prompt

`<think>` and `</think>` are ordinary text which a tokenizer may cut anywhere ("</", "think",
">\\n\\n"), so tags are found in the bytes of the output, token by token. What is kept between
tokens is `partial`, the beginning of a tag that the output ends with; the same bytes tell which
tokens would complete a tag, and masking these (`TagBans`) makes the output well-formed by
construction.

Counting: the trace is what follows the opening tag of the prompt; its length is in tokens. Nothing
here chooses tokens, and no text of the prompt but its last turn is looked at.

Source: arXiv 2508.14444 section 3.4.
"""

from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import NamedTuple

import torch
from torch import Tensor

from plait.core.errors import RequestError
from plait.engine.request import SamplingParams

OPEN, CLOSE = b"<think>", b"</think>"
_TAGS = (OPEN, CLOSE)
_PARTIALS = sorted({tag[:length] for tag in _TAGS for length in range(len(tag))})


class Phase(Enum):
    """Where a request stands with its trace."""

    OUTSIDE = auto()
    THINKING = auto()
    GRACE = auto()
    FORCING = auto()
    ANSWER = auto()


class ThinkingLimits(NamedTuple):
    """Tokens of trace after which to look for the end of a line, and to close in any case."""

    budget: int | None = None
    deadline: int | None = None


NO_LIMITS = ThinkingLimits()


def thinking_limits(params: SamplingParams, num_close_tokens: int) -> ThinkingLimits:
    """Return the limits of a request whose forced close takes up to `num_close_tokens` tokens.

        deadline = min(budget + grace, max_tokens - min_answer_tokens - num_close_tokens)
        budget = min(budget, deadline)

    A request with neither budget nor reserve may think until max_tokens and then has no answer.
    Raises: RequestError if the reserve for the answer leaves no room to close the trace.
    """
    budget, deadline = params.max_thinking_tokens, None
    if budget is not None:
        grace = params.budget_grace_tokens if budget and params.budget_rule == "newline" else 0
        deadline = budget + grace
    bounded = budget is not None or params.min_answer_tokens
    if bounded and params.max_tokens is not None:
        room = params.max_tokens - params.min_answer_tokens - num_close_tokens
        if room < 0 and not params.min_answer_tokens:
            room = 0  # the tag itself may be cut; nothing was promised beyond max_tokens
        if room < 0:
            raise RequestError(
                f"min_answer_tokens = {params.min_answer_tokens} and {num_close_tokens} tokens to "
                f"close the trace do not fit in max_tokens = {params.max_tokens}: raise max_tokens "
                "or reserve less"
            )
        deadline = room if deadline is None else min(room, deadline)
        budget = deadline if budget is None else min(budget, deadline)
    return ThinkingLimits(budget, deadline)


def phase_after(last_turn: bytes) -> Phase:
    """Return the phase in which a prompt leaves the output; `last_turn` follows its last special
    token.

    A turn of the assistant tells by its beginning, so that a trace or an answer can be continued;
    any other text tells by its end only.
    """
    header, _, body = last_turn.partition(b"\n")
    if header == b"Assistant" and body.startswith(OPEN):
        return Phase.ANSWER if CLOSE in body else Phase.THINKING
    end = last_turn.rstrip()
    if end.endswith(OPEN):
        return Phase.THINKING
    return Phase.ANSWER if end.endswith(CLOSE) else Phase.OUTSIDE


class Thinking:
    """The output of one request as bytes, and where its trace begins and ends."""

    def __init__(
        self, phase: Phase, limits: ThinkingLimits = NO_LIMITS, *, on_new_line: bool = True
    ) -> None:
        self.phase = phase
        self.limits = limits
        self.output = bytearray()
        self.partial = b""
        """The beginning of a tag with which the output ends."""
        self.num_trace_tokens = 0
        self.num_closing_tags = 0
        self.trace_start: int | None = 0 if phase is Phase.THINKING else None
        self.trace_end: int | None = None
        self.answer_start: int | None = 0 if phase is Phase.ANSWER else None
        """Offset in `output`; None until the answer is known to have begun."""
        self._prompt_ends_line = on_new_line
        self._spend()

    def observe(self, piece: bytes) -> None:
        """Take the bytes of the next token of the output, sampled or forced."""
        self.output += piece
        if self.phase in (Phase.THINKING, Phase.GRACE):
            self.num_trace_tokens += 1
        if self.phase is Phase.OUTSIDE:
            self._look_for_opening()
        else:
            self._scan(piece)
        self._spend()

    @property
    def forced_text(self) -> str:
        """What closes the trace from here: one of `closing_texts`."""
        if len(self.partial) > 1 and CLOSE.startswith(self.partial):
            return _closing_text(CLOSE[len(self.partial) :])
        return _closing_text(CLOSE if self._at_line_end() else b"\n" + CLOSE)

    def _look_for_opening(self) -> None:
        if self.answer_start is not None:
            return
        if self.output.startswith(OPEN):
            self.phase = Phase.THINKING
            self.trace_start = len(OPEN)
            self._prompt_ends_line = False
            self._scan(bytes(self.output[len(OPEN) :]))
        elif not OPEN.startswith(self.output):
            self.answer_start = 0

    def _scan(self, piece: bytes) -> None:
        """Find closing tags that end in `piece`, and the partial tag it leaves."""
        window = self.partial + piece
        self.partial = b""
        if b"<" not in window:
            return
        while (position := window.find(CLOSE)) >= 0:
            self.num_closing_tags += 1
            window = window[position + len(CLOSE) :]
            if self.phase is not Phase.ANSWER:
                self.phase = Phase.ANSWER
                self.answer_start = len(self.output) - len(window)
                self.trace_end = self.answer_start - len(CLOSE)
        self.partial = _partial_tag(window)

    def _spend(self) -> None:
        budget, deadline = self.limits
        if self.phase not in (Phase.THINKING, Phase.GRACE) or budget is None or deadline is None:
            return
        if self.num_trace_tokens >= budget:
            must = self.num_trace_tokens >= deadline or self._at_line_end()
            self.phase = Phase.FORCING if must else Phase.GRACE

    def _at_line_end(self) -> bool:
        if len(self.output) > (self.trace_start or 0):
            return self.output.endswith(b"\n")
        return self._prompt_ends_line


def closing_texts() -> list[str]:
    """Return all that can be forced: the tag, a line break and the tag, the rest of a begun tag."""
    rests = [CLOSE[length:] for length in range(2, len(CLOSE))]
    return [_closing_text(tag) for tag in (CLOSE, b"\n" + CLOSE, *rests)]


class TagBans:
    """Which tokens may not follow, by the partial tag that the output ends with.

    In the answer, those that would complete a think tag; in the trace, those that would complete a
    second one or end the output before the trace is closed (`end_ids`).
    """

    def __init__(self, token_bytes: Sequence[bytes], end_ids: Iterable[int] = ()) -> None:
        # Both tags end in ">", so only tokens that hold one can complete a tag.
        candidates = [(id_, piece) for id_, piece in enumerate(token_bytes) if b">" in piece]
        self._in_answer: dict[bytes, Tensor] = {}
        self._in_trace: dict[bytes, Tensor] = {}
        self._begins_answer: dict[bytes, Tensor] = {}
        for partial in _PARTIALS:
            texts = [(id_, partial + piece) for id_, piece in candidates]
            self._add(self._in_answer, partial, [i for i, text in texts if _has_tag(text)])
            # A trace may be closed, but not by a token that goes on to a second tag.
            closed = [(id_, text.partition(CLOSE)[2]) for id_, text in texts]
            twice = [i for i, rest in closed if _has_tag(rest)]
            self._add(self._in_trace, partial, [*twice, *sorted(end_ids)])
            self._add(self._begins_answer, partial, [i for i, rest in closed if rest.strip()])

    def banned(self, thinking: Thinking) -> Tensor | None:
        """Return the ids, int64, that may not follow now, or None if all may."""
        if thinking.phase is Phase.OUTSIDE:
            return None
        table = self._in_answer if thinking.phase is Phase.ANSWER else self._in_trace
        return table.get(thinking.partial)

    def beginning_answer(self, thinking: Thinking) -> Tensor | None:
        """Return the ids, int64, that would close the trace and begin the answer in one token.

        A grammar judges whole tokens, so its answer must begin with a token of its own.
        """
        if thinking.phase in (Phase.OUTSIDE, Phase.ANSWER):
            return None
        return self._begins_answer.get(thinking.partial)

    @staticmethod
    def _add(table: dict[bytes, Tensor], partial: bytes, ids: list[int]) -> None:
        if ids:
            table[partial] = torch.tensor(ids)


def _closing_text(tag: bytes) -> str:
    # As behind the traces that models are trained on.
    return tag.decode() + "\n\n"


def _has_tag(text: bytes) -> bool:
    return any(tag in text for tag in _TAGS)


def _partial_tag(text: bytes) -> bytes:
    # A tag holds "<" only as its first byte, so a partial tag begins at the last "<".
    start = text.rfind(b"<")
    end = bytes(text[start:]) if start >= 0 else b""
    return end if end in _PARTIALS else b""
