import json
import random
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.core.errors import DataError
from plait.grade.toolcall import ToolCall, differ_from_possible, grade_toolcall, parse_calls

FUNCTION = {
    "name": "trip.plan",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "price": {"type": "float"},
            "stops": {"type": "array", "items": {"type": "string"}},
            "guest": {"type": "dict"},
            "legs": {"type": "array", "items": {"type": "dict"}},
            "fast": {"type": "boolean"},
        },
        "required": ["city"],
    },
}
POSSIBLE = {
    "trip.plan": {
        "city": ["St. Gallen", "Bern"],
        "days": [3],
        "price": [2.0],
        "stops": [["a b", "c"], ""],
        "guest": [{"name": ["Ann"], "age": [4, ""]}, ""],
        "legs": [[{"to": ["x"]}], ""],
        "fast": [True, ""],
    }
}
GOOD = {"city": "st gallen", "days": 3, "price": 2}


def reference(**record):
    return json.dumps(record)


POSSIBLE_REFERENCE = reference(functions=[FUNCTION], possible_answers=[POSSIBLE])


def answer(*calls):
    return f"<TOOLCALL>{json.dumps([{'name': n, 'arguments': a} for n, a in calls])}</TOOLCALL>"


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"stops": ["A-B", "C"]},
        {"guest": {"name": "ann"}},
        {"guest": {"name": "ann", "age": 4}},
        {"legs": [{"to": "X"}]},
        {"fast": True},
    ],
)
def test_listed_values_of_the_declared_type_are_right(change):
    found = answer(("trip.plan", {**GOOD, **change}))
    assert grade_toolcall("q", POSSIBLE_REFERENCE, found) == (1.0, "correct")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"city": "Basel"}, "city = 'Basel'"),
        ({"days": 3.0}, "days = 3.0"),
        ({"days": True}, "days = True"),
        ({"stops": ["c", "a b"]}, "stops ="),
        ({"stops": [1]}, "stops ="),
        ({"guest": {"name": "ann", "age": 5}}, "guest ="),
        ({"guest": {"age": 4}}, "guest ="),
        ({"guest": {"name": "ann", "x": 1}}, "guest ="),
        ({"legs": [{"to": "y"}]}, "legs ="),
        ({"fast": 1}, "fast = 1"),
        ({"speed": 1}, "unexpected argument speed"),
    ],
)
def test_other_values_are_wrong(change, reason):
    score = grade_toolcall("q", POSSIBLE_REFERENCE, answer(("trip.plan", {**GOOD, **change})))
    assert score.value == 0
    assert reason in score.reason


def test_required_and_not_optional_arguments_must_be_there():
    for key in GOOD:
        short = {name: value for name, value in GOOD.items() if name != key}
        score = grade_toolcall("q", POSSIBLE_REFERENCE, answer(("trip.plan", short)))
        assert score == (0.0, f"trip.plan without {key}")


def test_parallel_calls_match_in_any_order_and_number():
    one, two = ("f", {"x": 1}), ("g", {"y": [1, {"z": "a"}]})
    calls = reference(calls=[{"name": n, "arguments": a} for n, a in (one, two)])
    assert grade_toolcall("q", calls, answer(two, one)).value == 1
    assert grade_toolcall("q", calls, answer(one)).reason.startswith("no call g")
    assert grade_toolcall("q", calls, answer(one, two, one)).reason == "1 calls too many"
    assert grade_toolcall("q", calls, answer(("f", {"x": 1.0}), two)).value == 1
    assert grade_toolcall("q", calls, answer(("f", {"x": True}), two)).value == 0


def test_of_equal_numbers_only_the_one_of_the_declared_type_is_used_up():
    integer = {"properties": {"x": {"type": "integer"}}, "required": ["x"]}
    functions = [{"name": "f", "parameters": integer}]
    twice = reference(functions=functions, possible_answers=[{"f": {"x": [10]}}] * 2)
    assert grade_toolcall("q", twice, answer(("f", {"x": 10}), ("f", {"x": 10}))).value == 1
    assert grade_toolcall("q", twice, answer(("f", {"x": 10.0}), ("f", {"x": 10}))).value == 0


def test_no_call_may_be_what_is_expected():
    assert grade_toolcall("q", reference(calls=[]), "I cannot do that.").value == 1
    assert grade_toolcall("q", reference(calls=[]), answer(("f", {}))).value == 0


@pytest.mark.parametrize(
    "text", ["<TOOLCALL>[", "<TOOLCALL>{]</TOOLCALL>", '[{"name": 1}]', "[1]", "[" * 10_000]
)
def test_calls_that_cannot_be_read_score_zero(text):
    assert grade_toolcall("q", reference(calls=[]), text) == (0.0, "tool calls that cannot be read")


def test_arguments_nested_too_deeply_score_zero():
    deep = '[{"name": "f", "arguments": {"x": ' + "[" * 900 + "]" * 900 + "}}]"
    expected = reference(calls=[{"name": "f", "arguments": {"x": 1}}])
    for wanted in (expected, reference(calls=[])):
        assert grade_toolcall("q", wanted, deep).value == 0


def test_arguments_may_be_text():
    assert parse_calls('[{"name": "f", "arguments": "{\\"x\\": 1}"}]') == [ToolCall("f", {"x": 1})]


@pytest.mark.parametrize(
    "bad",
    [
        "x",
        "1",
        "{}",
        reference(calls=[1]),
        reference(functions=[FUNCTION], possible_answers=[{"other": {}}]),
        reference(functions=[FUNCTION], possible_answers=[{"trip.plan": {"city": "Bern"}}]),
    ],
)
def test_a_reference_that_cannot_be_used_is_the_data_s_fault(bad):
    with pytest.raises(DataError, match="question 'q'"):
        grade_toolcall("q", bad, "")


@given(st.text() | st.text('[]{}":,namergut1<>TOLC/ '))
def test_no_answer_crashes_the_grader(text):
    assert grade_toolcall("q", POSSIBLE_REFERENCE, text).value == 0


CATEGORIES = ["simple_python", "multiple", "parallel", "parallel_multiple"]
CATEGORIES += [f"live_{name}" for name in ("simple", "multiple", "parallel", "parallel_multiple")]


@pytest.fixture
def bfcl(monkeypatch):
    """BFCL's checker and data; the table of models it imports needs every vendor's package."""
    package = pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval")
    models = types.ModuleType("models")
    models.__dict__["MODEL_CONFIG_MAPPING"] = {"m": types.SimpleNamespace(underscore_to_dot=False)}
    monkeypatch.setitem(sys.modules, "bfcl_eval.constants.model_config", models)
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

    def check(functions, calls, possible, category):
        made = [{call.name: call.arguments} for call in calls]
        return ast_checker(functions, made, possible, Language.PYTHON, category, "m")["valid"]

    return check, Path(package.__file__).parent / "data"


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_same_verdicts_as_bfcl_on_its_own_data(bfcl, category):
    check, folder = bfcl
    file = f"BFCL_v4_{category}.json"
    tasks = [json.loads(line) for line in (folder / file).read_text().splitlines()]
    gold = (folder / "possible_answer" / file).read_text().splitlines()
    rng = random.Random(0)
    verdicts = []
    for task, line in list(zip(tasks, gold, strict=True))[:400]:
        functions, possible = task["function"], json.loads(line)["ground_truth"]
        by_name = {function["name"]: function for function in functions}
        for calls in made_up(rng, possible):
            expected = check(functions, calls, possible, category)
            found = differ_from_possible(calls, possible, by_name)
            assert (found is None) == expected, (task["id"], calls, found)
            verdicts.append(expected)
    assert 0.2 < sum(verdicts) / len(verdicts) < 0.8


def made_up(rng, possible):
    """Yield the gold calls with each value taken from its list, then with one thing changed."""
    calls = [
        ToolCall(
            name, {key: filled(rng.choice(values or [[]])) for key, values in accepted.items()}
        )
        for [(name, accepted)] in (call.items() for call in possible)
    ]
    calls = [ToolCall(n, {k: v for k, v in a.items() if v != ""}) for n, a in calls]
    rng.shuffle(calls)
    yield calls
    yield calls[1:]
    for _ in range(4):
        changed = [ToolCall(name, dict(arguments)) for name, arguments in calls]
        _, arguments = rng.choice(changed)
        key = rng.choice([*arguments, "extra"])
        arguments[key] = altered(rng, arguments.get(key))
        yield changed


def filled(value):
    """Turn one accepted value into a value: dictionaries list accepted values of their own."""
    if isinstance(value, dict):
        first = {k: v[0] if isinstance(v, list) and v else v for k, v in value.items()}
        return {key: filled(item) for key, item in first.items() if item != ""}
    return [filled(item) for item in value] if isinstance(value, list) else value


def altered(rng, value):
    others = [value, str(value), [value], 0, 1.5, True, "other", None, {}, []]
    if isinstance(value, str):
        others += [value.upper(), value + ".", value.replace(" ", "")] * 3
    if isinstance(value, int | float):
        others += [float(value), int(value), -value] * 3
    if isinstance(value, list):
        others += [value[::-1], value[1:], [str(item) for item in value]] * 3
    return rng.choice(others)
