"""What clients send: OpenAI's fields, vLLM's and NIM's; what is not known is refused.

A field that is accepted does what it says; the few that change nothing here are named in
`_Harmless`. Three names exist for the thinking budget (`max_thinking_tokens`, vLLM's
`thinking_token_budget`, NIM's `nvext.max_thinking_tokens`); two that disagree are refused.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from plait.core.errors import RequestError
from plait.engine.request import MAX_TOP_LOGPROBS, Grammar, SamplingParams

MAX_CHOICES = 128
_RESERVE_FROM_TOKENS = 64
"""From this max_tokens on, a quarter of it is kept for the answer unless the request says else."""


class Body(BaseModel):
    """Base of everything a client sends: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class _Harmless(Body):
    """Fields that clients send along and that change nothing here."""

    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool = False
    """True adds a last chunk with the usage and no choices."""
    continuous_usage_stats: bool = False
    """True puts the usage so far into every chunk."""
    include_obfuscation: bool | None = None


class NvExt(Body):
    """NIM's place for the thinking budget."""

    max_thinking_tokens: int | None = None


class JsonSchema(Body):
    """A schema under OpenAI's wrapping."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] | bool = Field(default={}, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Body):
    """vLLM's form of an answer: exactly one of these."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Sampling(_Harmless):
    """What chat and plain completions have in common."""

    model: str | None = None
    max_tokens: int | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    """-1 and 0 keep all."""
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    min_tokens: int | None = None
    logit_bias: dict[int, float] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    """True adds `prompt_token_ids` and each choice's `token_ids`."""
    max_thinking_tokens: int | None = None
    """Thinking budget; -1 or null is no limit."""
    thinking_token_budget: int | None = None
    nvext: NvExt | None = None
    budget_rule: Literal["newline", "hard"] | None = None
    budget_grace_tokens: int | None = None
    min_answer_tokens: int | None = None
    """Part of max_tokens that the trace may not take; unset, a quarter of it."""
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    def sampling_params(self, index: int, grammar: Grammar | None, **more: Any) -> SamplingParams:
        """Return the parameters of choice `index`; `more` are those of one kind of request.

        Raises: RequestError naming the field.
        """
        max_tokens = more.pop("max_tokens", self.max_tokens)
        budget = self.thinking_budget()
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k == -1 else self.top_k,
            "min_p": self.min_p,
            "seed": None if self.seed is None else (self.seed + index) % 2**63,
            "stop": (self.stop,) if isinstance(self.stop, str) else self.stop,
            "stop_token_ids": self.stop_token_ids,
            "min_tokens": self.min_tokens,
            "logit_bias": self.logit_bias,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "repetition_penalty": self.repetition_penalty,
            "budget_rule": self.budget_rule,
            "budget_grace_tokens": self.budget_grace_tokens,
            "min_answer_tokens": self._reserve(max_tokens),
            "max_tokens": max_tokens,
            "max_thinking_tokens": budget,
            "grammar": grammar,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        return SamplingParams(ignore_eos=self.ignore_eos, **chosen, **more)

    def thinking_budget(self) -> int | None:
        """Return the budget that all given names agree on; None is no limit.

        Raises: RequestError if they contradict each other or one is below -1.
        """
        nested = self.nvext.max_thinking_tokens if self.nvext else None
        given = _given(
            ("max_thinking_tokens", self.max_thinking_tokens),
            ("thinking_token_budget", self.thinking_token_budget),
            ("nvext.max_thinking_tokens", nested),
        )
        for name, value in given.items():
            if value < -1:
                raise RequestError(f"{name} = {value}; allowed: 0 or more, or -1 for no limit")
        budget = agreed(given)
        return None if budget == -1 else budget

    def _reserve(self, max_tokens: int | None) -> int | None:
        if self.min_answer_tokens is not None or max_tokens is None:
            return self.min_answer_tokens
        return max_tokens // 4 if max_tokens >= _RESERVE_FROM_TOKENS else None


class FunctionCall(Body):
    """A call in a past message."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class PastToolCall(Body):
    """A call in a past message, wrapped as OpenAI does."""

    id: str | None = None
    type: Literal["function"] = "function"
    index: int | None = None
    function: FunctionCall


class TextPart(Body):
    """Text as one of several parts."""

    type: Literal["text", "refusal"] = "text"
    text: str = ""
    refusal: str | None = None
    cache_control: dict[str, Any] | None = None


class ChatMessage(Body):
    """One message, in whatever shape clients keep it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[PastToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    type: Literal["text", "message"] | None = None
    """lm-eval and the Responses API write it."""
    function_call: None = None


class Function(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool, which is a function."""

    type: Literal["function"] = "function"
    function: Function


class NamedFunction(Body):
    """The name of a function."""

    name: str


class NamedToolChoice(Body):
    """A tool that must be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class ChatTemplateOptions(Body):
    """Options of the chat template."""

    enable_thinking: bool | None = None
    thinking: bool | None = None


class ChatRequest(Sampling):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    """none switches thinking off; other levels are refused, the budget is their place."""
    include_reasoning: bool = True
    """False leaves the trace out of the answer."""
    chat_template_kwargs: ChatTemplateOptions | None = None
    add_generation_prompt: Literal[True] = True
    continue_final_message: bool = False

    def output_limit(self) -> int | None:
        """Return the most tokens to generate."""
        return agreed(
            _given(
                ("max_tokens", self.max_tokens),
                ("max_completion_tokens", self.max_completion_tokens),
            )
        )

    def enable_thinking(self) -> bool | None:
        """Return what the request says of thinking; None leaves it to the template."""
        if self.reasoning_effort not in (None, "none"):
            raise RequestError(
                f"reasoning_effort = {self.reasoning_effort!r}; allowed: 'none'. How long this "
                "model thinks is a number of tokens: max_thinking_tokens"
            )
        options = self.chat_template_kwargs or ChatTemplateOptions()
        return agreed(
            _given(
                ("reasoning_effort", None if self.reasoning_effort is None else False),
                ("chat_template_kwargs.enable_thinking", options.enable_thinking),
                ("chat_template_kwargs.thinking", options.thinking),
            )
        )


class CompletionRequest(Sampling):
    """Body of /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    add_special_tokens: bool | None = None
    """No token is ever added to a text; accepted because it says what happens anyway."""

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts, one or more.

        Raises: RequestError if there is none.
        """
        prompt: Any = self.prompt
        several = isinstance(prompt, list) and (not prompt or not isinstance(prompt[0], int))
        found = list(prompt) if several else [prompt]
        if not found or [] in found or "" in found:
            raise RequestError("prompt is empty: give at least one token")
        return found


class TokenizeRequest(Body):
    """Body of /tokenize: a text or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    tools: list[Tool] | None = None
    chat_template_kwargs: ChatTemplateOptions | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool | None = None
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    """Body of /detokenize."""

    model: str | None = None
    tokens: list[int]


def _given(*fields: tuple[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields if value is not None}


def agreed(given: dict[str, Any]) -> Any:
    """Return the one value of fields that mean the same, or None if none is given.

    Raises: RequestError if they differ.
    """
    values = list(given.values())
    if any(value != values[0] for value in values):
        said = _list(f"{name} = {value}" for name, value in given.items())
        raise RequestError(f"{said} mean the same and contradict each other: send one of them")
    return values[0] if values else None


def _list(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
