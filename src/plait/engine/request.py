"""What a caller asks for and what a caller gets.

`SamplingParams` says how to choose tokens, when to stop and how long to think; `Completion` is the
whole result of one prompt and `Delta` a piece of it while it is being made.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import model_validator

from plait.core.config import Settings, shortened
from plait.core.errors import RequestError
from plait.core.text import is_unicode

if TYPE_CHECKING:
    from plait.engine.memory_plan import MemoryPlan

FinishReason = Literal["stop", "length"]
MAX_TOP_LOGPROBS = 20
MAX_STOPS, MAX_STOP_CHARACTERS = 64, 1024
MAX_GRAMMAR_CHARACTERS = 2**18


class Grammar(Settings):
    """A form that the answer must have; the trace before it stays free.

    The answer begins behind the closing tag, or at once where the prompt opened no trace, and ends
    as soon as the grammar allows nothing more. JSON is written without free white space.
    """

    kind: Literal["json_schema", "regex", "lark"]
    source: str
    """The schema as JSON, the regular expression, or the Lark grammar as llguidance reads it."""

    @model_validator(mode="after")
    def _check(self) -> "Grammar":
        # Compiling one of a megabyte takes seconds, in which no other answer goes on.
        if len(self.source) > MAX_GRAMMAR_CHARACTERS:
            raise RequestError(
                f"the {self.kind} has {len(self.source):,} characters; allowed: "
                f"{MAX_GRAMMAR_CHARACTERS:,}"
            )
        return self


class TokenLogprob(NamedTuple):
    """A token that could stand here and its log-probability, raw as in `Completion.logprobs`."""

    token_id: int
    logprob: float


class SamplingParams(Settings):
    """How to generate one completion.

    Filters act in this order: temperature, top_k, top_p (on what top_k kept), min_p.
    Raises: RequestError naming the field, its value and what is allowed.
    """

    max_tokens: int | None = None
    """Most tokens to generate, those of the trace and of a forced close included; None = until the
    context is full."""
    temperature: float = 1.0
    """0 = greedy."""
    top_p: float = 1.0
    """Keep the fewest tokens whose probabilities reach this sum, in (0, 1]; 1 = all."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 = all."""
    min_p: float = 0.0
    """Drop tokens less probable than this share of the most probable one, in [0, 1]."""
    logit_bias: dict[int, float] = {}  # noqa: RUF012
    """Added to the logits of these token ids before anything else."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it was generated, in [-2, 2]."""
    presence_penalty: float = 0.0
    """Subtracted from a token's logit once it was generated, in [-2, 2]."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or output; 1 = off."""
    seed: int | None = None
    """The same seed gives the same text in any batch; None draws one from torch."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are cut from it; they are not looked for in the trace."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the output, besides the model's own ends of turn and text."""
    ignore_eos: bool = False
    """True goes on past the model's own ends of turn and text."""
    min_tokens: int = 0
    """Tokens to generate before the model may end the output; a finished grammar ends it anyway."""
    grammar: Grammar | None = None
    """The form of the answer; needs the extra `serve`."""
    logprobs: bool = False
    """True returns the log-probability of each generated token; see `Completion.logprobs`."""
    top_logprobs: int = 0
    """How many of the most probable tokens to report at each place, 0 to 20."""
    prompt_logprobs: bool = False
    """True scores the prompt too (`echo`); it is then read as a whole, without reuse."""
    max_thinking_tokens: int | None = None
    """Thinking budget: tokens of the trace; 0 = no trace, None = no limit."""
    budget_rule: Literal["newline", "hard"] = "newline"
    """newline: once the budget is spent, close the trace at the next end of a line, and at
    budget + budget_grace_tokens in any case (report section 3.4). hard: close at the budget."""
    budget_grace_tokens: int = 500
    """How far beyond the budget rule `newline` may go. Source: report section 3.4."""
    min_answer_tokens: int = 0
    """Room within max_tokens that the trace may not take; 0 reserves nothing."""
    free_think_tags: bool = False
    """True lets the model write think tags after its trace, so that well-formedness can be
    measured; otherwise they are masked and the output has exactly one closing tag by
    construction."""

    @model_validator(mode="after")
    def _check(self) -> "SamplingParams":
        rules = [
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1, or None"),
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("seed", self.seed is None or 0 <= self.seed < 2**63, "in 0 .. 2**63 - 1, or None"),
            (
                "stop",
                len(self.stop) <= MAX_STOPS
                and all(0 < len(text) <= MAX_STOP_CHARACTERS for text in self.stop)
                and all(map(is_unicode, self.stop)),
                f"up to {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS:,} characters of Unicode",
            ),
            (
                "max_thinking_tokens",
                self.max_thinking_tokens is None or self.max_thinking_tokens >= 0,
                "0 or more, or None for no limit",
            ),
            ("logit_bias", all(map(math.isfinite, self.logit_bias.values())), "finite numbers"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "between -2 and 2"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "between -2 and 2"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            (
                "top_logprobs",
                0 <= self.top_logprobs <= MAX_TOP_LOGPROBS,
                f"0 to {MAX_TOP_LOGPROBS}",
            ),
            ("min_tokens", self.min_tokens >= 0, "0 or more"),
            ("budget_grace_tokens", self.budget_grace_tokens >= 0, "0 or more"),
            ("min_answer_tokens", self.min_answer_tokens >= 0, "0 or more"),
        ]
        for name, holds, allowed in rules:
            if not holds:
                raise RequestError(f"{name} = {shortened(getattr(self, name))}; allowed: {allowed}")
        if self.min_answer_tokens and self.max_tokens is None:
            raise RequestError(
                f"min_answer_tokens = {self.min_answer_tokens} reserves a part of max_tokens, "
                "which is None: set max_tokens"
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens = {self.min_tokens} is more than max_tokens = {self.max_tokens}"
            )
        return self


@dataclass(frozen=True)
class Completion:
    """The result of one prompt: what was generated, as ids and as text in two parts."""

    prompt_ids: list[int]
    token_ids: list[int]
    """All that followed the prompt: sampled tokens, forced ones and the stop token."""
    logprobs: list[float] | None
    """Per token, log-softmax of the model's raw logits (temperature 1, nothing filtered or masked),
    which is what a trainer's forward gives; 0.0 for forced tokens. None unless asked for."""
    forced: list[bool]
    """True where the thinking budget fed the token; such tokens were not sampled."""
    text: str
    """All text, think tags included, stop tokens and stop strings cut off."""
    reasoning: str | None
    """The trace, stripped; None if the prompt asked for none."""
    content: str
    """The answer; stripped where the prompt opened or closed a trace, else exactly as generated."""
    finish_reason: FinishReason
    """stop: the model ended, or a stop string came; length: max_tokens or the context was
    reached."""
    num_reasoning_tokens: int
    """What the budget counts: tokens sampled until the trace was closed, a closing tag that the
    model wrote itself included."""
    num_closing_tags: int
    """Closing think tags in the output; one is well-formed."""
    num_cached_tokens: int = 0
    """Tokens of the prompt that were not read again because a stored state knew them."""
    top_logprobs: list[list[TokenLogprob]] | None = None
    """Per token the most probable ones, best first; empty for forced tokens. None unless asked
    for."""
    prompt_logprobs: list[float | None] | None = None
    """Per token of the prompt; None for the first, which nothing predicts. None unless asked."""
    prompt_top_logprobs: list[list[TokenLogprob]] | None = None
    """As `top_logprobs`, for the prompt; empty for its first token."""

    @property
    def well_formed(self) -> bool:
        """True if there is exactly one closing tag after a trace, and none without a trace."""
        return self.num_closing_tags == (self.reasoning is not None)


class Delta(NamedTuple):
    """A piece of an output while it is generated; the last one carries the whole result.

    Text lags behind the tokens: it comes once it is certain.
    """

    reasoning: str = ""
    content: str = ""
    num_tokens: int = 0
    """Tokens generated so far."""
    completion: Completion | None = None
    token_ids: Sequence[int] = ()
    """Tokens that are new since the last piece."""
    logprobs: Sequence[float] = ()
    """Of `token_ids`; empty unless asked for."""
    top_logprobs: Sequence[list[TokenLogprob]] = ()
    """Of `token_ids`; empty unless asked for."""


class EngineStats(NamedTuple):
    """What an engine is doing now and has done since it was made."""

    num_running: int
    num_waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    state_slots_used: int
    """Rows of running requests and stored states."""
    state_slots_total: int
    prefix_query_tokens: int
    """Tokens of all prompts that were looked up for reuse."""
    prefix_hit_tokens: int
    num_preemptions: int
    prompt_tokens: int
    generated_tokens: int
    reasoning_tokens: int
    forced_closes: int
    memory_plan: "MemoryPlan"
