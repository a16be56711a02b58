"""Rows of public data sets as plait's own records.

The user downloads a set (JSONL, parquet or Arrow files, or a folder of them) and names its form;
a row becomes a record with the fields of `records`. Nothing is fetched here. A row that is not of
the set's form is refused by name; one that is, but does not serve (another language, no
preference), is skipped. Field names are those of the sets' cards on the hub; tests have three rows
of each by hand.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from plait.align.instructed import instructed
from plait.core.errors import DataError

Row = Mapping[str, Any]
_TRACE = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)
_GLAIVE_TURN = re.compile(r"(USER|ASSISTANT|FUNCTION RESPONSE):\s*")


def helpsteer3(row: Row) -> dict[str, Any] | None:
    """nvidia/HelpSteer3, `preference`: English contexts with two responses, scored -3 to 3."""
    score = row["overall_preference"]
    if row["language"] != "english" or score == 0:
        return None
    better, worse = ("response2", "response1") if score > 0 else ("response1", "response2")
    return {"prompt": row["context"], "chosen": row[better], "rejected": row[worse]}


def helpsteer3_prompts(row: Row) -> dict[str, Any] | None:
    """The same contexts as prompts for a reward model's judgement."""
    return {"prompt": row["context"]} if row["language"] == "english" else None


def chat_prompts(row: Row) -> dict[str, Any] | None:
    """lmsys/lmsys-chat-1m, allenai/WildChat: the user's first message of English conversations."""
    if row["language"] != "English":
        return None
    return {"prompt": [_message("user", row["conversation"][0]["content"])]}


def instructed_prompts(row: Row) -> dict[str, Any] | None:
    """The same first messages, with instructions that the verifier `instruction` checks."""
    record = chat_prompts(row)
    return record and instructed(record["prompt"][0]["content"])


def xlam(row: Row) -> dict[str, Any]:
    """Salesforce/xlam-function-calling-60k: a query, tools and answers, the latter as JSON."""
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool["name"],
                "description": tool["description"],
                "parameters": {"type": "object", "properties": tool["parameters"]},
            },
        }
        for tool in json.loads(row["tools"])
    ]
    calls = [_call(call["name"], call["arguments"]) for call in json.loads(row["answers"])]
    turn = _message("assistant", "") | {"tool_calls": calls}
    return {"messages": [_message("user", row["query"]), turn], "tools": tools}


def glaive(row: Row) -> dict[str, Any]:
    """glaiveai/glaive-function-calling-v2: one text of turns; tools as JSON in the system text."""
    system = row["system"].removeprefix("SYSTEM:").strip()
    pieces = _GLAIVE_TURN.split(row["chat"])[1:]
    messages = []
    for speaker, text in zip(pieces[::2], pieces[1::2], strict=True):
        text = text.replace("<|endoftext|>", "").strip()
        if speaker == "ASSISTANT":
            messages.append(_glaive_answer(text))
        else:
            messages.append(_message("user" if speaker == "USER" else "tool", text))
    return {"messages": messages, "tools": _json_objects(system)}


def when2call(row: Row) -> dict[str, Any]:
    """nvidia/When2Call, `train_sft`: messages, and tools as JSON texts."""
    return {"messages": row["messages"], "tools": [_tool(tool) for tool in row["tools"]]}


def when2call_preferences(row: Row) -> dict[str, Any]:
    """nvidia/When2Call, `train_pref`."""
    sides = {"chosen": row["chosen_response"], "rejected": row["rejected_response"]}
    turns = {key: [side] if isinstance(side, Mapping) else side for key, side in sides.items()}
    tools = [_tool(tool) for tool in row["tools"]]
    return {"prompt": row["messages"], "tools": tools, **turns}


def open_math_reasoning(row: Row) -> dict[str, Any]:
    """nvidia/OpenMathReasoning: a problem and a solution with its trace."""
    return _solved(row["problem"], row["generated_solution"])


def open_code_reasoning(row: Row) -> dict[str, Any]:
    """nvidia/OpenCodeReasoning: a task and a solution with its trace."""
    return _solved(row["input"], row["output"])


def nemotron_post_training(row: Row) -> dict[str, Any]:
    """nvidia/Nemotron-Post-Training-Dataset-v1 and -v2: messages, traces inside answers; where
    tools are called, `metadata` is JSON with their declarations."""
    messages = [
        {**message, **_answer(message.get("content") or "")}
        if message["role"] == "assistant"
        else dict(message)
        for message in row["messages"]
    ]
    tools = _declared(row.get("metadata"))
    if not tools and any(message.get("tool_calls") for message in messages):
        raise ValueError("tools are called, but metadata declares none")
    return {"messages": messages, "tools": [_tool(tool) for tool in tools] or None}


FORMS: dict[str, Callable[[Row], dict[str, Any] | None]] = {
    form.__name__: form
    for form in (
        helpsteer3,
        helpsteer3_prompts,
        chat_prompts,
        instructed_prompts,
        xlam,
        glaive,
        when2call,
        when2call_preferences,
        open_math_reasoning,
        open_code_reasoning,
        nemotron_post_training,
    )
}


def converted(form: str, row: Row) -> dict[str, Any] | None:
    """Return a row of a public set as a record; None for one that does not serve.

    Raises: DataError naming the row's id if it is not of that form.
    """
    try:
        return FORMS[form](row)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        name = row.get("id", "a row")
        raise DataError(
            f"{name}: not of the form {form}: {type(error).__name__}: {error}"
        ) from None


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _call(name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _tool(tool: Any) -> Any:
    tool = json.loads(tool) if isinstance(tool, str) else tool
    return tool if "function" in tool else {"type": "function", "function": tool}


def _declared(metadata: Any) -> list[Any]:
    """Return the tools under a row's metadata, which may be JSON or a text of any kind."""
    try:
        facts = json.loads(metadata) if isinstance(metadata, str) else metadata
    except ValueError:
        return []
    return (facts.get("tools") or []) if isinstance(facts, Mapping) else []


def _solved(problem: str, solution: str) -> dict[str, Any]:
    return {"messages": [_message("user", problem), _answer(solution)]}


def _answer(text: str) -> dict[str, Any]:
    """An assistant's turn, its trace taken out of the text."""
    match = _TRACE.fullmatch(text)
    if match is None:
        return _message("assistant", text)
    trace, answer = match[1].strip(), match[2].strip()
    return _message("assistant", answer) | ({"reasoning_content": trace} if trace else {})


def trace_apart(message: Row) -> Row:
    """Return a message; an assistant's whose text begins with <think> ... </think>, as many sets
    have it, with that trace as `reasoning_content`."""
    text = message.get("content")
    if (
        message.get("role") != "assistant"
        or not isinstance(text, str)
        or isinstance(message.get("reasoning_content"), str)
        or not _TRACE.fullmatch(text)
    ):
        return message
    return {**message, **_answer(text)}


def _glaive_answer(text: str) -> dict[str, Any]:
    before, tag, call = text.partition("<functioncall>")
    if not tag:
        return _message("assistant", text)
    # Arguments stand as JSON between single quotes, inside what else would be JSON.
    match = re.fullmatch(
        r"""\s*\{\s*"name":\s*"([^"]+)",\s*"arguments":\s*'(.*)'\s*\}\s*""", call, re.DOTALL
    )
    if match is None:
        raise ValueError(f"a call that cannot be read: {call[:60]}")
    made = _call(match[1], json.loads(match[2]))
    return _message("assistant", before.strip()) | {"tool_calls": [made]}


def _json_objects(text: str) -> list[dict[str, Any]]:
    """Return the tools declared in a text, one JSON object after another."""
    decoder, found, place = json.JSONDecoder(), [], text.find("{")
    while place >= 0:
        tool, end = decoder.raw_decode(text, place)
        found.append({"type": "function", "function": tool})
        place = text.find("{", end)
    return found
