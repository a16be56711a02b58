"""Grade tool calls: against lists of accepted arguments as BFCL does, or by plain equality.

BFCL's references give, for each expected call, every argument with the list of values that are
right; an empty string in that list means that the argument may be left out. A call matches if it
has the right name, every required argument, no unknown one, and each value has the declared type
and is one of those listed. Spaces, case and the signs , . / - _ * ^ do not count in strings, an
integer is taken where a float is declared, and a value of another type than declared is taken if
the listed values have that type too (BFCL writes variables so). Parallel calls match in any order.
Java and JavaScript references, whose values are source text, are not understood.

Source: the AST checker of BFCL v3 (Berkeley Function Calling Leaderboard), whose verdicts the tests
compare with.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from plait.core.errors import DataError
from plait.grade.score import Score

_BLOCK = re.compile(r"<TOOLCALL>(.*?)</TOOLCALL>", re.DOTALL)
_IGNORED = re.compile(r"[ ,./\-_*^]")
_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "number": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "object": dict,
    "any": str,
}


class ToolCall(NamedTuple):
    """One call of a tool."""

    name: str
    arguments: dict[str, Any]


def parse_calls(answer: str) -> list[ToolCall] | None:
    """Return the calls an answer makes, in its `<TOOLCALL>` blocks or as a bare JSON list.

    An answer without either makes no call; None means that what stands there cannot be read.
    """
    blocks = _BLOCK.findall(answer)
    if not blocks and "<TOOLCALL>" in answer:
        return None
    if not blocks and answer.strip()[:1] in ("[", "{"):
        blocks = [answer]
    calls = []
    for block in blocks:
        try:
            listed = json.loads(block)
        except (ValueError, RecursionError):
            return None
        calls += listed if isinstance(listed, list) else [listed]
    try:
        return [_as_call(call) for call in calls]
    except (KeyError, TypeError, ValueError):
        return None


def grade_toolcall(question: str, reference: str, answer: str) -> Score:
    """Score 1 if the answer makes the expected calls, else 0 with the reason.

    `reference` is JSON, either `{"calls": [{"name": ..., "arguments": {...}}]}`, to be made exactly
    and in any order, or `{"functions": [...], "possible_answers": [{name: {argument: [...]}}]}`.
    Raises: DataError if it is neither.
    """
    try:
        record = json.loads(reference)
        exact = [_as_call(call) for call in record["calls"]] if "calls" in record else None
        possible = [] if exact is not None else [dict(c) for c in record["possible_answers"]]
        functions = {function["name"]: function for function in record.get("functions", [])}
        _check_possible(possible, functions)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"reference {reference!r} of the question {question!r} holds neither calls nor "
            f"possible_answers with their functions: {error!r}"
        ) from None
    calls = parse_calls(answer)
    if calls is None:
        return Score(0.0, "tool calls that cannot be read")
    try:
        if exact is not None:
            reason = differ_exactly(calls, exact)
        else:
            reason = differ_from_possible(calls, possible, functions)
    except RecursionError:  # JSON is read deeper than it is compared
        reason = "arguments nested too deeply"
    return Score(0.0, reason) if reason else Score(1.0, "correct")


def differ_exactly(calls: Sequence[ToolCall], expected: Sequence[ToolCall]) -> str | None:
    """Say how calls differ from the expected ones, in any order, or None; 1 is 1.0 but not true."""
    left = list(map(_canonical, calls))
    for call in expected:
        if _canonical(call) not in left:
            return f"no call {call.name}({call.arguments})"
        left.remove(_canonical(call))
    return f"{len(left)} calls too many" if left else None


def differ_from_possible(
    calls: Sequence[ToolCall],
    possible: Sequence[Mapping[str, Mapping[str, list[Any]]]],
    functions: Mapping[str, Mapping[str, Any]],
) -> str | None:
    """Say how calls differ from what BFCL's references accept, or None if they do not.

    `possible` holds one call each, `{name: {argument: accepted values}}`; `functions` are their
    declarations by name.
    """
    if len(calls) != len(possible):
        return f"{len(calls)} calls, expected {len(possible)}"
    left = list(calls)
    for reference in possible:
        [(name, accepted)] = reference.items()
        reasons = []
        for index, call in enumerate(left):
            reason = _differ_call(call, name, accepted, functions[name]["parameters"])
            if reason is None:
                del left[index]  # not the first equal one: 10 equals 10.0, yet only one may match
                break
            reasons.append(reason)
        else:
            return reasons[0] if len(possible) == 1 else f"no call matches {name}: {reasons[0]}"
    return None


def _differ_call(
    call: ToolCall, name: str, accepted: Mapping[str, list[Any]], parameters: Mapping[str, Any]
) -> str | None:
    if call.name != name:
        return f"called {call.name}, expected {name}"
    missing = [key for key in parameters.get("required", []) if key not in call.arguments]
    missing += [key for key in accepted if key not in call.arguments and "" not in accepted[key]]
    if missing:
        return f"{name} without {missing[0]}"
    for key, value in call.arguments.items():
        if key not in accepted or key not in parameters["properties"]:
            return f"{name} with the unexpected argument {key}"
        if not _accepts(value, accepted[key], parameters["properties"][key]):
            return f"{name} with {key} = {value!r}"
    return None


def _accepts(value: Any, accepted: list[Any], schema: Mapping[str, Any]) -> bool:
    """Say whether a value has the declared type, or that of the accepted ones, and is accepted."""
    declared = _TYPES[schema["type"]]
    inner = _TYPES[schema["items"]["type"]] if declared is list else None
    if declared is float and type(value) is int:
        value = float(value)
    listed = _listed_type(accepted)
    if type(value) is not declared:
        return type(value) is listed and value in accepted
    if inner is not None and not any(_items_fit(value, answer, inner) for answer in accepted):
        return False
    if listed is not None and listed is not declared:
        return value in accepted
    if declared is dict:
        return any(_dict_matches(value, answer) for answer in accepted if answer != "")
    if inner is dict:
        return any(_dicts_match(value, answer) for answer in accepted)
    if declared is str:
        return _plain(value) in [_plain(answer) for answer in accepted]
    if declared is list:
        plain = [_plain(item) for item in value]
        return any(plain == [_plain(item) for item in answer] for answer in accepted)
    return value in accepted


def _items_fit(items: list[Any], answer: Any, inner: type) -> bool:
    """Say whether every item has the declared type, or that of an accepted list's first item."""
    if not isinstance(answer, list):
        return True
    return all(type(item) in (inner, _listed_type(answer)) for item in items)


def _listed_type(accepted: list[Any]) -> type | None:
    return next((type(answer) for answer in accepted if answer != ""), None)


def _dict_matches(value: dict[str, Any], accepted: Mapping[str, list[Any]]) -> bool:
    return all(
        key in accepted and _plain(item) in [_plain(answer) for answer in accepted[key]]
        for key, item in value.items()
    ) and all(key in value or "" in answers for key, answers in accepted.items())


def _dicts_match(value: list[Any], accepted: Sequence[Any]) -> bool:
    return len(value) == len(accepted) and all(
        isinstance(item, dict) and isinstance(answer, dict) and _dict_matches(item, answer)
        for item, answer in zip(value, accepted, strict=True)
    )


def _plain(value: Any) -> Any:
    """Return a string without what does not count in it; anything else as it is."""
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value


def _canonical(call: ToolCall) -> tuple[str, str]:
    return call.name, json.dumps(_unfloated(call.arguments), sort_keys=True)


def _unfloated(value: Any) -> Any:
    """Return a JSON value with whole floats as integers: 1.0 and 1 are one number in JSON."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_unfloated(item) for item in value]
    if isinstance(value, dict):
        return {key: _unfloated(item) for key, item in value.items()}
    return value


def _as_call(call: Any) -> ToolCall:
    """Raises: KeyError, TypeError or ValueError if it is no call."""
    arguments = call.get("arguments", {}) if isinstance(call, dict) else None
    if isinstance(arguments, str):  # OpenAI's clients carry arguments as JSON text
        arguments = json.loads(arguments)
    if not isinstance(arguments, dict) or not isinstance(call["name"], str):
        raise TypeError(f"{call!r} is no call")
    return ToolCall(call["name"], arguments)


def _check_possible(
    possible: list[dict[str, Any]], functions: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raises: KeyError, TypeError or ValueError for what `differ_from_possible` cannot use."""
    for call in possible:
        [(name, accepted)] = call.items()
        properties = functions[name]["parameters"]["properties"]
        for key, answers in accepted.items():
            if not isinstance(answers, list):
                raise TypeError(f"{name}.{key} does not list its accepted values")
            declared = properties[key]["type"] if key in properties else "any"
            if _TYPES[declared] is list:
                declared = properties[key]["items"]["type"]
            if declared not in _TYPES:
                raise ValueError(f"{name}.{key} has the unknown type {declared!r}")
