"""One endpoint, asked many things at once: bounded, retried, every answer kept.

Plain HTTP instead of the openai package: one POST is all that is used, that package's own retries
would hide how often an endpoint failed, and its pydantic layer costs more than the call.
"""

import asyncio
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from plait.core.endpoint import EndpointSettings
from plait.core.errors import ConfigError, EndpointError
from plait.core.seed import mix_seed
from plait.synth.replies import Reply, ReplyStore

Message = Mapping[str, Any]

LONGEST_WAIT_S = 60.0
FAILURES_THAT_STOP = 32
"""Calls that fail one after the other, with no answer between them, before an endpoint is given
up: one bad prompt costs an item, a broken server must not cost them all."""

_TRIED_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}


class Unusable(Exception):
    """There is no answer, or none of use: the item is dropped under this reason."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Call(NamedTuple):
    """What a model is asked."""

    messages: Sequence[Message]
    max_tokens: int
    schema: dict[str, Any] | None = None
    """JSON schema of the answer."""
    sample: str = ""
    """Tells apart several answers to the same question."""


class Client:
    """An endpoint in a role; use as an asynchronous context.

    `budget_tokens` bounds what all roles together may have read and written in `store`.
    """

    def __init__(
        self,
        role: str,
        settings: EndpointSettings,
        store: ReplyStore,
        budget_tokens: int | None = None,
    ) -> None:
        try:
            import httpx2
        except ImportError:
            raise ConfigError(
                "asking an endpoint needs httpx2: pip install 'plait[synth]'"
            ) from None
        self.role, self.settings, self.store = role, settings, store
        self.budget_tokens = budget_tokens
        self._gate = asyncio.Semaphore(settings.max_in_flight)
        self._pending: dict[str, asyncio.Task[Reply]] = {}
        self._failures_in_row = 0
        self._errors = httpx2.ConnectError, httpx2.TransportError
        key = settings.api_key()
        limit = settings.max_in_flight
        self._http = httpx2.AsyncClient(
            limits=httpx2.Limits(max_connections=limit, max_keepalive_connections=limit),
            headers={"Content-Type": "application/json"}
            | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=None,  # of the whole answer, not of a pause in it: see _post
            verify=settings.url.startswith("https"),  # loading certificates takes a while
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._pending.values():
            task.cancel()
        await asyncio.gather(*self._pending.values(), return_exceptions=True)
        await self._http.aclose()

    async def complete(self, call: Call) -> Reply:
        """Return the answer to a call, from the store if it was answered before.

        Equal calls at the same time are sent once.
        Raises: Unusable if this call gets no answer or the budget is spent; EndpointError if the
        endpoint cannot be used as a whole.
        """
        body = self._body(call)
        key = hashlib.sha256(body).hexdigest()
        reply = self.store.get(key)
        if reply is not None:
            return reply
        if key not in self._pending:
            task = asyncio.create_task(self._fetch(key, body))
            self._pending[key] = task
            task.add_done_callback(lambda _: self._pending.pop(key))
        return await asyncio.shield(self._pending[key])

    async def _fetch(self, key: str, body: bytes) -> Reply:
        async with self._gate:
            if self.budget_tokens is not None and self.store.num_tokens >= self.budget_tokens:
                raise Unusable("over_budget", f"{self.budget_tokens} tokens are spent")
            reply = await self._send(body)
        self.store.put(key, self.role, reply)
        return reply

    def _body(self, call: Call) -> bytes:
        settings = self.settings
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": list(call.messages),
            "max_tokens": call.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            **settings.extra,
        }
        if call.schema is not None and settings.json_answers != "prompt":
            # Not `strict`: OpenAI then refuses schemas with free objects or defaults; servers with
            # grammars hold to the schema either way.
            by_name = {"json_schema": {"name": "answer", "schema": call.schema}}
            is_named = settings.json_answers == "json_schema"
            form = by_name if is_named else {"schema": call.schema}
            body["response_format"] = {"type": settings.json_answers, **form}
        body["seed"] = mix_seed(json.dumps(body, sort_keys=True), call.sample) % 2**31
        return json.dumps(body, ensure_ascii=True, sort_keys=True).encode()

    async def _send(self, body: bytes) -> Reply:
        """Send until there is an answer or the tries are spent."""
        failure = Unusable("unreachable")
        for number in range(self.settings.num_tries):
            if number:
                await asyncio.sleep(self._wait_s(number, failure))
            try:
                reply = await self._post(body)
            except Unusable as error:
                failure = error
                if error.reason == "rejected":
                    break
            else:
                self._failures_in_row = 0
                return reply
        self._failures_in_row += 1
        unreachable = failure.reason == "unreachable"
        if unreachable or self._failures_in_row >= FAILURES_THAT_STOP:
            times = "" if unreachable else f"{self._failures_in_row} calls in a row failed, "
            raise EndpointError(
                f"endpoint of the role {self.role!r}, {self.settings.url}: {times}{failure}; see "
                "to the server, then run the same command: it goes on from here"
            )
        raise failure

    def _wait_s(self, number: int, failure: Unusable) -> float:
        wait_s = self.settings.backoff_s * 2 ** (number - 1) * random.uniform(0.5, 1.0)
        asked_s = failure.wait_s if isinstance(failure, _Busy) else 0.0
        return min(max(wait_s, asked_s), LONGEST_WAIT_S)

    async def _post(self, body: bytes) -> Reply:
        """Send once. Raises: Unusable, or EndpointError for what no further try can mend."""
        unreachable, broken = self._errors
        url = f"{self.settings.url}/chat/completions"
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                response = await self._http.post(url, content=body)
        except TimeoutError:
            raise Unusable("timed_out", f"no answer in {self.settings.timeout_s:g} s") from None
        except unreachable as error:
            raise Unusable("unreachable", str(error)) from None
        except broken as error:
            raise Unusable("broken_connection", str(error) or type(error).__name__) from None
        status = response.status_code
        if status == 200:
            return _as_reply(response.content)
        detail = f"status {status}, {response.text[:200]!r}"
        if status in _TRIED_AGAIN:
            raise _Busy(detail, response.headers.get("retry-after", ""))
        if status in (401, 403, 404):
            what = "model or address" if status == 404 else "key (api_key_env)"
            raise EndpointError(
                f"endpoint of the role {self.role!r}, {url}, refuses its {what}: {detail}"
            )
        raise Unusable("rejected", detail)


class _Busy(Unusable):
    """The server asks to come again."""

    def __init__(self, detail: str, retry_after: str) -> None:
        super().__init__("server_error", detail)
        self.wait_s = float(retry_after) if retry_after.isdigit() else 0.0


def _as_reply(content: bytes) -> Reply:
    """Raises: Unusable if this is no chat completion."""
    try:
        answer = json.loads(content)
        [choice, *_] = answer["choices"]
        message = choice["message"]
        text, thought = _without_thought(message.get("content") or "")
        thought = message.get("reasoning_content") or message.get("reasoning") or thought
        usage = answer.get("usage") or {}
        f"{text}{thought or ''}".encode()  # half of a surrogate pair is no text
        return Reply(
            text,
            thought,
            "content_filter" if message.get("refusal") else choice.get("finish_reason") or "stop",
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Unusable("garbage", f"no chat completion: {content[:120]!r}") from None


def _without_thought(text: str) -> tuple[str, str | None]:
    thought, end, answer = text.rpartition("</think>")
    if not end:
        return text, None
    return answer.strip(), thought.removeprefix("<think>").strip() or None
