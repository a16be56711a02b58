"""Tool-calling conversations: models play the user, the assistant and the server behind the tools.

Source: the report (section 3.1): multi-turn conversations by role-play of user, assistant and API
agents, started from sets of tools and personas; rules check each step, and only trajectories that
succeed are kept. The rules are ours: calls name a tool that is there and fit its JSON schema, the
server's answer is JSON, nothing is called twice with equal arguments, the last turn is the
assistant's, at least one call was made, and the user or a judge says that the wish was fulfilled.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from pydantic import BaseModel, Field

from plait.core.errors import ConfigError, DataError
from plait.core.seed import mix_seed
from plait.synth.client import Unusable
from plait.synth.pipeline import Pipeline
from plait.synth.prompts import render, table
from plait.synth.rows import first, read_rows
from plait.synth.sample import Sample
from plait.synth.settings import PositiveInt, Sources, SynthSettings

_NAMED_ELSEWHERE = {"additionalProperties", "patternProperties", "anyOf", "oneOf", "allOf", "$ref"}
"""Where a schema may allow arguments besides its own properties."""


class ToolCallSettings(SynthSettings):
    """Settings of the generator `tool_calls`; files hold sets of tools (`tools`)."""

    roles = ("user", "assistant", "api", "judge")

    conversations_per_set: PositiveInt = 4
    """Conversations with each set of tools, each with another persona. Our choice."""
    max_requests: PositiveInt = 3
    """Most turns of the user. Our choice."""
    max_rounds: PositiveInt = 6
    """Most rounds of calls before the assistant must answer."""
    max_turn_tokens: PositiveInt = 1024


class ToolSet(BaseModel):
    """A row of a file of tools: OpenAI's function declarations, wrapped or bare."""

    id: str = ""
    tools: list[dict[str, Any]] = Field(min_length=1)


class Call(BaseModel):
    """A call as the assistant writes it."""

    name: str
    arguments: dict[str, Any]


class Request(BaseModel):
    """A turn of the user."""

    satisfied: bool
    message: str


class Turn(BaseModel):
    """A turn of the assistant: calls, or words to the user."""

    calls: list[Call]
    message: str


class Result(BaseModel):
    """What the server answers to a call."""

    result: dict[str, Any]


class Verdict(BaseModel):
    """What the judge says of a conversation."""

    reason: str
    fulfilled: bool


class Scene(NamedTuple):
    """What one conversation starts from."""

    id: str
    tools: list[dict[str, Any]]
    persona: str


async def generate(settings: ToolCallSettings, sources: Sources, pipeline: Pipeline) -> None:
    """Play a conversation for every set of tools and persona."""
    if not settings.files:
        raise ConfigError("files: the generator tool_calls starts from tools; name JSONL files")
    scenes = list(first(settings, _scenes(settings)))
    await pipeline.run("conversations", scenes, partial(_play, settings, pipeline))


def _scenes(settings: ToolCallSettings) -> Iterator[Scene]:
    personas = list(table("personas").values())
    for row in read_rows(settings.files_read(), ToolSet):
        tools = [_declaration(tool, row.id) for tool in row.tools]
        start = mix_seed(settings.seed, row.id)
        for number in range(settings.conversations_per_set):
            persona = personas[(start + number) % len(personas)]
            yield Scene(f"{row.id}/{number}", tools, persona)


def _declaration(tool: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return a tool as OpenAI declares it. Raises: DataError if its name or schema is wrong."""
    import jsonschema

    function = tool.get("function", tool)
    try:
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(schema, dict):
            raise DataError(f"{place}: the parameters of a tool are a JSON schema, an object")
        jsonschema.Draft202012Validator.check_schema(schema)
        _check_references(schema, place)
        named = {"name": function["name"], "description": function.get("description", "")}
    except (KeyError, AttributeError, jsonschema.SchemaError) as error:
        reason = getattr(error, "message", repr(error))
        raise DataError(f"{place}: a tool needs a name and a JSON schema: {reason}") from None
    return {"type": "function", "function": {**named, "parameters": schema}}


def _check_references(schema: dict[str, Any], place: str) -> None:
    """Raises: DataError for a `$ref` that leaves the schema."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            raise DataError(
                f"{place}: $ref {reference!r} is not in the tool's own parameters; write out there "
                "what it stands for"
            ) from None


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict) and isinstance(part.get("$ref"), str):
        yield part["$ref"]
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    for each in parts:
        yield from _references(each)


async def _play(settings: ToolCallSettings, pipeline: Pipeline, scene: Scene) -> list[Sample]:
    """Return the conversation of a scene. Raises: Unusable if it breaks a rule or fails."""
    roles, most = pipeline.roles, settings.max_turn_tokens
    tools = [tool["function"] for tool in scene.tools]
    messages: list[dict[str, Any]] = []
    satisfied = False
    for number in range(settings.max_requests):
        prompt = render(
            "tool_user",
            tools=tools,
            persona=scene.persona,
            talk=transcript(messages),
            last=number == settings.max_requests - 1,
        )
        request = await roles["user"].fill(prompt, Request, max_tokens=most)
        satisfied = request.satisfied and bool(messages)
        if satisfied:
            break
        if not request.message.strip():
            raise Unusable("silent_user")
        messages.append({"role": "user", "content": request.message.strip()})
        await _serve_request(settings, pipeline, scene, messages)
    if not any(message.get("tool_calls") for message in messages):
        raise Unusable("no_call")
    prompt = render("tool_judge", tools=tools, talk=transcript(messages), satisfied=satisfied)
    verdict = await roles["judge"].fill(prompt, Verdict, max_tokens=most)
    if not verdict.fulfilled:
        raise Unusable("not_fulfilled", verdict.reason[:100])
    return [Sample(scene.id, messages=messages, tools=scene.tools)]


async def _serve_request(
    settings: ToolCallSettings, pipeline: Pipeline, scene: Scene, messages: list[dict[str, Any]]
) -> None:
    """Let the assistant call tools until it answers the user."""
    roles, most = pipeline.roles, settings.max_turn_tokens
    tools = [tool["function"] for tool in scene.tools]
    for _ in range(settings.max_rounds):
        prompt = render("tool_assistant", tools=tools, talk=transcript(messages))
        check = partial(check_turn, tools, messages)
        turn = await roles["assistant"].fill(prompt, Turn, max_tokens=most, check=check)
        if not turn.calls:
            messages.append({"role": "assistant", "content": turn.message.strip()})
            return
        calls = []
        for call in turn.calls:
            calls.append(_as_message(call, f"call_{_num_calls(messages) + len(calls)}"))
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        for call, declared in zip(turn.calls, calls, strict=True):
            tool = next(tool for tool in tools if tool["name"] == call.name)
            prompt = render(
                "tool_api", tool=tool, arguments=call.arguments, talk=transcript(messages)
            )
            answer = await roles["api"].fill(prompt, Result, max_tokens=most)
            text = json.dumps(answer.result, ensure_ascii=False)
            messages.append({"role": "tool", "tool_call_id": declared["id"], "content": text})
    raise Unusable("too_many_rounds")


def check_turn(
    tools: Sequence[Mapping[str, Any]], messages: Sequence[Mapping[str, Any]], turn: Turn
) -> None:
    """Check a turn of the assistant against the tools and what was called before.

    Raises: Unusable naming the rule that it breaks.
    """
    import jsonschema

    if not turn.calls and not turn.message.strip():
        raise Unusable("empty_turn")
    by_name = {tool["name"]: tool for tool in tools}
    made = {
        _canonical(call["function"]["name"], call["function"]["arguments"])
        for message in messages
        for call in message.get("tool_calls", ())
    }
    for call in turn.calls:
        if call.name not in by_name:
            raise Unusable("unknown_tool", call.name[:40])
        schema = by_name[call.name]["parameters"]
        validator = jsonschema.Draft202012Validator(schema)
        error = next(iter(validator.iter_errors(call.arguments)), None)
        if error is not None:
            raise Unusable("wrong_arguments", error.message[:100])
        unknown = set(call.arguments) - set(schema.get("properties", {}))
        if unknown and not _NAMED_ELSEWHERE & schema.keys():
            raise Unusable("unknown_argument", ", ".join(sorted(unknown))[:100])
        if _canonical(call.name, call.arguments) in made:
            raise Unusable("repeated_call", call.name)
        made.add(_canonical(call.name, call.arguments))


def transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return a conversation as the players read it."""
    lines = []
    for message in messages:
        for call in message.get("tool_calls", ()):
            function = call["function"]
            arguments = json.dumps(function["arguments"], ensure_ascii=False)
            lines.append(f"ASSISTANT calls {function['name']}({arguments})")
        if message["content"]:
            lines.append(f"{message['role'].upper()}: {message['content']}")
    return "\n".join(lines)


def _as_message(call: Call, id: str) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": id, "type": "function", "function": function}


def _num_calls(messages: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(message.get("tool_calls", ())) for message in messages)


def _canonical(name: str, arguments: Mapping[str, Any]) -> str:
    return json.dumps([name, arguments], sort_keys=True)
