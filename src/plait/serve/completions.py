"""/v1/completions: raw text in, raw text out, think tags and all.

Benchmarks live on this route: with `echo` and `logprobs` the prompt itself is scored, and prompts
may be token ids.
"""

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from plait.core.errors import RequestError
from plait.data.tokenizer import Tokenizer
from plait.engine.request import Completion, Delta
from plait.engine.text import TextSection, num_held_bytes
from plait.serve.forms import answer_form
from plait.serve.logprobs import TextOffsets, TokenNames
from plait.serve.schema import CompletionRequest, StreamOptions
from plait.serve.usage import usage
from plait.serve.worker import Answers, Ask, Update

_DEFAULT_MAX_TOKENS = 16  # OpenAI's


def completion_asks(request: CompletionRequest, tokenizer: Tokenizer) -> list[Ask]:
    """Return what the engine is asked for, one per prompt.

    Raises: RequestError naming the field that is wrong.
    """
    grammar = answer_form(request)
    max_tokens = _DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    if max_tokens == 0 and request.echo:
        max_tokens = 1  # only the prompt is wanted: what follows it is dropped
    scored = request.logprobs is not None
    if scored and request.echo and request.stream:
        raise RequestError("echo with logprobs cannot be streamed: send stream = false")
    params = [
        request.sampling_params(
            index,
            grammar,
            max_tokens=max_tokens,
            logprobs=scored,
            top_logprobs=request.logprobs or 0,
            prompt_logprobs=scored and request.echo,
        )
        for index in range(request.n or 1)
    ]
    return [
        Ask(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt, params)
        for prompt in request.prompts()
    ]


class CompletionAnswer:
    """Writes the answer to one request for plain completions, whole or as chunks."""

    def __init__(
        self, request: CompletionRequest, model: str, names: TokenNames, tokenizer: Tokenizer
    ) -> None:
        self._request = request
        self._names = names
        self._tokenizer = tokenizer
        self._options = request.stream_options or StreamOptions()
        self._drops_output = request.max_tokens == 0
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """Return the response of a request that does not stream."""
        updates = await answers.last_updates()
        choices = [
            self._choice(index, update.delta.completion)
            for index, update in enumerate(updates)
            if update.delta.completion is not None
        ]
        spent = self._usage(answers, dict(enumerate(updates)))
        return self._head | {"choices": choices, "usage": spent}

    async def chunks(self, answers: Answers) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a request that streams."""
        latest: dict[int, Update] = {}
        stop = self._request.stop
        stops = (stop,) if isinstance(stop, str) else stop or ()
        offsets = [TextOffsets(self._names) for _ in answers.tickets]
        texts = [RawText(self._tokenizer.token_bytes, stops) for _ in answers.tickets]
        if self._request.echo or self._request.return_token_ids:
            for ticket in answers.tickets:
                yield self._prompt_chunk(ticket.index, ticket.handle.prompt_ids)
        async for index, update in answers.updates():
            latest[index] = update
            chunk = self._piece(index, texts[index], offsets[index], update.delta)
            if self._options.continuous_usage_stats:
                chunk["usage"] = self._usage(answers, latest)
            yield chunk
        if self._options.include_usage:
            yield self._head | {"choices": [], "usage": self._usage(answers, latest)}

    def _usage(self, answers: Answers, latest: Mapping[int, Update]) -> dict[str, Any]:
        if self._drops_output:
            latest = {
                index: update._replace(delta=update.delta._replace(num_tokens=0))
                for index, update in latest.items()
            }
        return usage(answers, latest)

    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        request = self._request
        echoed = self._prompt_text(completion.prompt_ids) if request.echo else ""
        choice = {
            "index": index,
            "text": echoed + ("" if self._drops_output else completion.text),
            "logprobs": None if request.logprobs is None else self._logprobs(completion),
            "finish_reason": "length" if self._drops_output else completion.finish_reason,
        }
        if request.return_token_ids:
            choice |= {
                "prompt_token_ids": completion.prompt_ids,
                "token_ids": [] if self._drops_output else completion.token_ids,
            }
        return choice

    def _logprobs(self, completion: Completion) -> dict[str, Any]:
        tokens: list[int] = []
        logprobs: list[float | None] = []
        offsets: list[int] = []
        counter = TextOffsets(self._names)
        tops: list[Any] = []
        if self._request.echo:
            tokens += completion.prompt_ids
            offsets += counter.take(completion.prompt_ids, shows_special=True)
            logprobs += completion.prompt_logprobs or []
            tops += completion.prompt_top_logprobs or []
        if not self._drops_output:
            tokens += completion.token_ids
            offsets += counter.take(completion.token_ids)
            logprobs += completion.logprobs or []
            tops += completion.top_logprobs or []
        return self._names.plain(
            tokens, logprobs, tops if self._request.logprobs else None, offsets
        )

    def _piece(
        self, index: int, text: "RawText", offsets: TextOffsets, delta: Delta
    ) -> dict[str, Any]:
        piece = "" if self._drops_output else text.take(delta)
        logprobs = None
        if self._request.logprobs is not None:
            tops = delta.top_logprobs if self._request.logprobs else None
            places = offsets.take(delta.token_ids)
            logprobs = self._names.plain(delta.token_ids, delta.logprobs, tops, places)
        reason = None
        if delta.completion is not None:
            reason = "length" if self._drops_output else delta.completion.finish_reason
        ids: dict[str, Any] = {}
        if self._request.return_token_ids:
            ids["token_ids"] = [] if self._drops_output else list(delta.token_ids)
        return self._chunk(index, piece, logprobs=logprobs, finish_reason=reason, **ids)

    def _prompt_chunk(self, index: int, prompt_ids: Sequence[int]) -> dict[str, Any]:
        text = self._prompt_text(prompt_ids) if self._request.echo else ""
        ids = {"prompt_token_ids": prompt_ids} if self._request.return_token_ids else {}
        return self._chunk(index, text, **ids)

    def _prompt_text(self, prompt_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(prompt_ids)

    def _chunk(self, index: int, text: str, **more: Any) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None} | more
        return self._head | {"choices": [choice]}


class RawText:
    """Turns the tokens of an output into its text piece by piece; the pieces join to
    `Completion.text`."""

    def __init__(self, token_bytes: Sequence[bytes], stops: Sequence[str]) -> None:
        self._num_characters = 0
        self._token_bytes = token_bytes
        self._stops = [stop.encode() for stop in stops]
        self._output = bytearray()
        self._num_read = 0
        self._section = TextSection(strip=False)

    def take(self, delta: Delta) -> str:
        """Take the next tokens and return the text that is now certain."""
        if delta.completion is not None:
            text = delta.completion.text[self._num_characters :]
        else:
            self._output += b"".join(self._token_bytes[token] for token in delta.token_ids)
            end = len(self._output) - num_held_bytes(self._output, self._stops)
            text = self._section.feed(bytes(self._output[self._num_read : end]))
            self._num_read = max(self._num_read, end)
        self._num_characters += len(text)
        return text
