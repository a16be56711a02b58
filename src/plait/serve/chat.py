"""/v1/chat/completions: from a request to the engine and back.

Streaming and not streaming go through the same `MessageReader`; a whole answer is one piece of a
stream. So they cannot disagree.
"""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from plait.core.errors import RequestError
from plait.data.tokenizer import Tokenizer
from plait.engine.request import Completion, Delta
from plait.serve.forms import allowed_tools, chat_grammar
from plait.serve.logprobs import TokenNames
from plait.serve.messages import template_messages, template_tools
from plait.serve.schema import ChatRequest, StreamOptions
from plait.serve.tools import OPENING, ToolCall, ToolParser
from plait.serve.usage import usage
from plait.serve.worker import Answers, Ask, Update


def chat_ask(request: ChatRequest, tokenizer: Tokenizer) -> Ask:
    """Return what the engine is asked for.

    Raises: RequestError naming the field that is wrong.
    """
    grammar = chat_grammar(request)
    if request.top_logprobs and not request.logprobs:
        raise RequestError(
            f"top_logprobs = {request.top_logprobs} needs logprobs = true, which it is not"
        )
    params = [
        request.sampling_params(
            index,
            grammar,
            max_tokens=request.output_limit(),
            logprobs=bool(request.logprobs),
            top_logprobs=request.top_logprobs or 0,
        )
        for index in range(request.n or 1)
    ]
    prompt_ids = tokenizer.encode_conversation(
        template_messages(request.messages),
        tools=template_tools([] if request.tool_choice == "none" else request.tools or []),
        enable_thinking=request.enable_thinking(),
        continue_final_message=request.continue_final_message,
    )
    return Ask(prompt_ids, params)


class Piece(NamedTuple):
    """What is new of a message."""

    reasoning: str
    content: str
    calls: list[ToolCall]


class MessageReader:
    """Turns the pieces of one output into pieces of a message.

    A call that the model begins inside its trace and does not follow by an answer counts as its
    answer; otherwise the trace only talks about a call.
    """

    def __init__(self, *, finds_calls: bool) -> None:
        self.num_calls = 0
        self._parser = ToolParser() if finds_calls else None
        self._held = ""
        """Text of the trace from where a call may begin."""

    def take(self, delta: Delta) -> Piece:
        """Take the next piece of the output and return what is new and certain of the message."""
        if self._parser is None:
            return Piece(delta.reasoning, delta.content, [])
        reasoning = self._trace(delta.reasoning)
        if delta.content:
            reasoning, self._held = reasoning + self._held, ""
        content, calls = self._parser.feed(delta.content)
        if delta.completion is not None:
            end = self._parser.finish()
            content, calls = content + end.content, calls + end.calls
            if self._held:
                trace = ToolParser()
                text, found = trace.feed(self._held)
                text += trace.finish().content
                reasoning, calls = reasoning + (text if found else self._held), calls + found
        self.num_calls += len(calls)
        return Piece(reasoning, content, calls)

    def _trace(self, text: str) -> str:
        """Return the text of the trace that lies before any call."""
        text = self._held + text
        start = text.find(OPENING)
        if start < 0:
            beginnings = range(min(len(OPENING) - 1, len(text)), 0, -1)
            length = next((n for n in beginnings if OPENING.startswith(text[-n:])), 0)
            start = len(text) - length
        self._held = text[start:]
        return text[:start]

    def finish_reason(self, completion: Completion) -> str:
        """Return why the message ends."""
        made_calls = self.num_calls and completion.finish_reason == "stop"
        return "tool_calls" if made_calls else completion.finish_reason


class ChatAnswer:
    """Writes the answer to one chat request, whole or as chunks."""

    def __init__(self, request: ChatRequest, model: str, names: TokenNames) -> None:
        self._request = request
        self._names = names
        self._options = request.stream_options or StreamOptions()
        finds_calls = bool(allowed_tools(request))
        self._readers = [MessageReader(finds_calls=finds_calls) for _ in range(request.n or 1)]
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """Return the response of a request that does not stream."""
        updates = await answers.last_updates()
        choices = [self._choice(index, update.delta) for index, update in enumerate(updates)]
        body = self._head | {
            "object": "chat.completion",
            "choices": choices,
            "usage": usage(answers, dict(enumerate(updates))),
        }
        if self._request.return_token_ids:
            body["prompt_token_ids"] = answers.tickets[0].handle.prompt_ids
        return body

    async def chunks(self, answers: Answers) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a request that streams."""
        latest: dict[int, Update] = {}
        for index in range(len(self._readers)):
            first = self._chunk(index, {"role": "assistant", "content": ""})
            if self._request.return_token_ids:
                first["prompt_token_ids"] = answers.tickets[index].handle.prompt_ids
            yield first
        async for index, update in answers.updates():
            latest[index] = update
            for chunk in self._chunks_of(index, update.delta):
                if self._options.continuous_usage_stats:
                    chunk["usage"] = usage(answers, latest)
                yield chunk
        if self._options.include_usage:
            yield self._chunk_head() | {"choices": [], "usage": usage(answers, latest)}

    def _choice(self, index: int, delta: Delta) -> dict[str, Any]:
        completion = delta.completion
        assert completion is not None  # the last update carries it
        reader = self._readers[index]
        piece = reader.take(delta)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": piece.content or (None if piece.calls else ""),
            "refusal": None,
        }
        if completion.reasoning is not None and self._request.include_reasoning:
            message |= _both_names(piece.reasoning)
        if piece.calls:
            message["tool_calls"] = [_call(call) for call in piece.calls[: self._max_calls]]
        choice = {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(delta),
            "finish_reason": reader.finish_reason(completion),
        }
        if self._request.return_token_ids:
            choice["token_ids"] = completion.token_ids
        return choice

    def _chunks_of(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """Return the chunks of one piece: text, then each call, then the end."""
        reader = self._readers[index]
        num_before = reader.num_calls
        piece = reader.take(delta)
        content: dict[str, Any] = {}
        if piece.reasoning and self._request.include_reasoning:
            content |= _both_names(piece.reasoning)
        if piece.content:
            content["content"] = piece.content
        extras: dict[str, Any] = {"logprobs": self._logprobs(delta)}
        if self._request.return_token_ids:
            extras["token_ids"] = list(delta.token_ids)
        chunks = []
        wanted = extras["logprobs"] or "token_ids" in extras or self._options.continuous_usage_stats
        if content or wanted:
            chunks.append(self._chunk(index, content, **extras))
        for number, call in enumerate(piece.calls, num_before):
            if number < self._max_calls:
                chunks += [self._chunk(index, part) for part in _call_parts(number, call)]
        if delta.completion is not None:
            reason = reader.finish_reason(delta.completion)
            chunks.append(self._chunk(index, {}, finish_reason=reason))
        return chunks

    @property
    def _max_calls(self) -> int:
        return 1 if self._request.parallel_tool_calls is False else 2**31

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if not self._request.logprobs:
            return None
        return self._names.chat(delta.token_ids, delta.logprobs, delta.top_logprobs)

    def _chunk_head(self) -> dict[str, Any]:
        return self._head | {"object": "chat.completion.chunk"}

    def _chunk(self, index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": None} | more
        return self._chunk_head() | {"choices": [choice]}


def _both_names(reasoning: str) -> dict[str, str]:
    # vLLM renamed the field and dropped the old name; clients of both kinds must find the trace.
    return {"reasoning": reasoning, "reasoning_content": reasoning}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _call_parts(index: int, call: ToolCall) -> Sequence[dict[str, Any]]:
    """Return the two deltas of a call: who is called, once, and the arguments."""
    named = _call(call._replace(arguments=""))
    return [
        {"tool_calls": [{"index": index, **named}]},
        {"tool_calls": [{"index": index, "function": {"arguments": call.arguments}}]},
    ]
