"""Which form an answer must have: from tool_choice, response_format and structured_outputs to a
grammar.

Calls are written as the model was trained to write them, `", "` between items and `": "` after
keys, and nothing else is allowed between them: with free white space a weak model emits blanks
for ever.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from plait.core.config import nearest
from plait.core.errors import RequestError
from plait.engine.request import Grammar
from plait.serve.schema import ChatRequest, NamedToolChoice, Sampling, Tool
from plait.serve.tools import CLOSING, OPENING

MAX_FORCED_CALLS = 8
"""Calls that tool_choice may force at once: a weak model would list them for ever."""

_ANY_OBJECT = '{"type": "object"}'
_SPELLING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def chat_grammar(request: ChatRequest) -> Grammar | None:
    """Return the grammar of a chat answer, or None if it is free.

    Raises: RequestError for contradictions and for tools that are not there.
    """
    tools = allowed_tools(request)
    form = answer_form(request)
    if request.tool_choice in (None, "auto", "none"):
        if form is None or not tools:
            return form
        if form.kind != "json_schema":
            raise RequestError(
                "structured_outputs other than JSON cannot be combined with tools: send "
                'tool_choice "none" or leave one of them out'
            )
        return _lark(
            f"json_answer | {_calls(request)}", tools, f"\njson_answer: %json {_tight(form.source)}"
        )
    if form is not None:
        raise RequestError(
            "tool_choice asks for a tool call, response_format or structured_outputs for an answer "
            "of another form: leave one of them out"
        )
    return _lark(_calls(request), tools)


def allowed_tools(request: ChatRequest) -> list[Tool]:
    """Return the tools that may be called.

    Raises: RequestError if tool_choice names or requires what is not there.
    """
    tools, choice = request.tools or [], request.tool_choice
    if choice == "none":
        return []
    if choice in (None, "auto"):
        return tools
    if not tools:
        raise RequestError("tool_choice asks for a tool call, but tools is empty")
    if not isinstance(choice, NamedToolChoice):
        return tools
    name = choice.function.name
    named = [tool for tool in tools if tool.function.name == name]
    if not named:
        names = [tool.function.name for tool in tools]
        raise RequestError(f"tool_choice names {name!r}, no such tool; {nearest(name, names)}")
    return named


def answer_form(request: Sampling) -> Grammar | None:
    """Return the grammar of response_format or structured_outputs.

    Raises: RequestError if there are several, or a field is missing.
    """
    found = [*_response_format(request), *_structured_outputs(request)]
    if len(found) > 1:
        raise RequestError(
            "response_format and structured_outputs give several forms of the answer: send one"
        )
    return found[0] if found else None


def _response_format(request: Sampling) -> list[Grammar]:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return []
    if wanted.type == "json_object":
        return [Grammar(kind="json_schema", source=_ANY_OBJECT)]
    if wanted.json_schema is None:
        raise RequestError('response_format of type "json_schema" needs the field json_schema')
    return [Grammar(kind="json_schema", source=json.dumps(wanted.json_schema.schema_))]


def _structured_outputs(request: Sampling) -> list[Grammar]:
    wanted = request.structured_outputs
    if wanted is None:
        return []
    found = []
    if wanted.json_ is not None:
        found.append(Grammar(kind="json_schema", source=_schema_text(wanted.json_)))
    if wanted.json_object:
        found.append(Grammar(kind="json_schema", source=_ANY_OBJECT))
    if wanted.regex is not None:
        found.append(Grammar(kind="regex", source=wanted.regex))
    if wanted.choice is not None:
        if not wanted.choice:
            raise RequestError("structured_outputs.choice is empty: give at least one text")
        found.append(Grammar(kind="regex", source="|".join(map(re.escape, wanted.choice))))
    if wanted.grammar is not None:
        found.append(Grammar(kind="lark", source=wanted.grammar))
    if not found:
        raise RequestError("structured_outputs needs one of json, regex, choice, grammar")
    return found


def _schema_text(schema: dict[str, Any] | str) -> str:
    if not isinstance(schema, str):
        return json.dumps(schema)
    try:
        return json.dumps(json.loads(schema))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"structured_outputs.json is not valid JSON: {error}") from None


def _calls(request: ChatRequest) -> str:
    """Return the rule body of a list of calls."""
    one = isinstance(request.tool_choice, NamedToolChoice) or request.parallel_tool_calls is False
    more = "" if one else f' (", " call){{0,{MAX_FORCED_CALLS - 1}}}'
    return f"{json.dumps(OPENING + '[')} call{more} {json.dumps(']' + CLOSING)}"


def _lark(start: str, tools: Sequence[Tool], rules: str = "") -> Grammar:
    calls = " | ".join(f"%json {json.dumps(_call_schema(tool))}" for tool in tools)
    return Grammar(kind="lark", source=f"start: {start}\ncall: {calls}{rules}\n")


def _tight(schema: str) -> str:
    """Return a schema that allows no free white space."""
    value = json.loads(schema)
    if not isinstance(value, dict):
        return schema
    return json.dumps({"x-guidance": {"whitespace_flexible": False}, **value})


def _call_schema(tool: Tool) -> dict[str, Any]:
    parameters = tool.function.parameters or {"type": "object", "additionalProperties": False}
    # Definitions move to the top, where references to them point.
    definitions = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
    arguments = {key: value for key, value in parameters.items() if key not in definitions}
    return {
        "x-guidance": _SPELLING,
        "type": "object",
        "properties": {
            "name": {"const": tool.function.name},
            "arguments": {"type": "object", **arguments},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
        **definitions,
    }
