"""Conversations as clients keep them, to conversations as chat templates read them."""

from collections.abc import Iterable, Sequence
from typing import Any

from plait.core.errors import RequestError
from plait.serve.schema import ChatMessage, TextPart, Tool, agreed


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Return messages with plain text, one name for the trace, and tool results in the order of
    their calls.

    Raises: RequestError naming the message.
    """
    plain = []
    for index, message in enumerate(messages):
        try:
            plain.append(_plain(message))
        except RequestError as error:
            raise RequestError(f"messages[{index}]: {error}") from None
    return list(_in_order_of_calls(plain))


def template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
    """Return tools as the template prints them, without the fields that were not sent."""
    return [tool.model_dump(exclude_unset=True) | {"type": "function"} for tool in tools] or None


def _plain(message: ChatMessage) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    plain: dict[str, Any] = {"role": role, "content": _text(message.content)}
    if role != "assistant":
        if message.tool_calls:
            raise RequestError(f"tool_calls in a message of role {role!r}")
        if role == "tool":
            plain["tool_call_id"] = message.tool_call_id
        return plain
    given = {"reasoning": message.reasoning, "reasoning_content": message.reasoning_content}
    trace = agreed({name: text for name, text in given.items() if text is not None})
    if trace is not None:
        plain["reasoning_content"] = trace
    if message.tool_calls:
        plain["tool_calls"] = [call.model_dump(exclude_none=True) for call in message.tool_calls]
    return plain


def _text(content: str | list[TextPart] | None) -> str:
    if isinstance(content, list):
        return "".join(part.refusal or part.text for part in content)
    return content or ""


def _in_order_of_calls(messages: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """The template prints results without the ids of their calls, so their order must tell."""
    place: dict[str | None, int] = {}
    results: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            results.append(message)
            continue
        yield from sorted(results, key=lambda each: place.get(each["tool_call_id"], len(place)))
        results = []
        calls = message.get("tool_calls", [])
        place = {call.get("id"): index for index, call in enumerate(calls)}
        yield message
    yield from sorted(results, key=lambda each: place.get(each["tool_call_id"], len(place)))
