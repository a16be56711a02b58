import inspect
import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.align.workbench.episode import MAX_CALLS, Episode, demonstrate
from plait.align.workbench.families import FAMILIES
from plait.align.workbench.generate import OfficeSettings, make_office
from plait.align.workbench.tasks import WorkbenchSettings, make_task, split_of
from plait.align.workbench.tools import TOOLS, call_tool
from plait.core.errors import ConfigError
from plait.data.chat import ChatTemplate, nano_template
from plait.grade.toolcall import ToolCall, parse_calls

SETTINGS = WorkbenchSettings()
TASKS = [make_task(SETTINGS, 0, split, i) for split in ("train", "test") for i in range(54)]
OFFICE = make_office(OfficeSettings(), 0)

IDS = sorted({i for rows in OFFICE.tables.values() for i in rows} | {"00000000", "x"})
FIELDS = ["subject", "status", "board", "duration", "list_name", "event_start", "nothing"]
WORDS = ["Won", "Design", "In Review", "60", "2023-12-01", "2023-12-01 09:00:00", "bar", ""]
values = (
    st.sampled_from([*IDS, *FIELDS, *WORDS, *OFFICE.people, "total_visits"])
    | st.text()
    | st.integers()
    | st.none()
    | st.lists(st.text(), max_size=1)
)
names = sorted({name for tool in TOOLS.values() for name in tool.arguments.model_fields})
wild_calls = st.tuples(
    st.sampled_from(sorted(TOOLS)) | st.text(),
    st.dictionaries(st.sampled_from(names) | st.text(), values, max_size=4),
)


@st.composite
def calls(draw):
    """Calls with the right names of arguments, so that many go through."""
    tool = TOOLS[draw(st.sampled_from(sorted(TOOLS)))]
    return tool.name, {name: draw(values) for name in tool.arguments.model_fields}


def run(task, steps):
    episode = Episode(task.office, task.gold)
    for name, arguments in steps:
        episode.call(name, arguments)
    return episode.score()


def test_there_are_27_tools_with_schemas_a_model_can_read():
    assert len(TOOLS) == 27
    for tool in TOOLS.values():
        function = tool.schema["function"]
        assert json.loads(json.dumps(function)) == function
        assert function["description"]
        parameters = list(inspect.signature(tool.function).parameters)[1:]
        assert list(function["parameters"]["properties"]) == parameters
        assert "title" not in json.dumps(function)


@settings(max_examples=150, deadline=None)
@given(st.lists(wild_calls | calls(), max_size=MAX_CALLS + 2))
def test_no_calls_crash_and_look_ups_change_nothing(made):
    episode = Episode(OFFICE, [])
    changing = False
    for name, arguments in made:
        before = episode.office.copy()
        answer = episode.call(name, arguments)
        assert isinstance(answer, str)
        failed = answer.startswith("Error: ")
        if failed or not TOOLS[name].changes:
            assert not episode.office.differences(before)
        else:
            changing = True
    assert not OFFICE.differences(make_office(OfficeSettings(), 0))
    if not changing and len(made) <= MAX_CALLS:
        assert episode.score() == (1.0, "correct")


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_doing_it_right_succeeds_and_anything_more_or_less_fails(task):
    conversation = demonstrate(task)
    answers = [m["content"] for m in conversation["messages"] if m["role"] == "tool"]
    assert not [answer for answer in answers if answer.startswith("Error")]
    assert len(task.steps) <= MAX_CALLS
    assert run(task, task.steps) == (1.0, "correct")
    assert run(task, reversed(task.gold)) == (1.0, "correct")
    if task.gold:
        assert run(task, task.gold[:-1]).value == 0
    new = {"customer_name": "x", "assigned_to_email": "a@b.c", "status": "Lead"}
    elsewhere = ToolCall("crm_add_customer", new)
    assert run(task, [*task.gold, elsewhere]) == (0.0, "wrong rows in customers (1)")
    for name in ("email_send_email", "calendar_create_event", "analytics_create_plot"):
        again = [step for step in task.gold if step.name == name]
        assert run(task, [*task.gold, *again]).value == (not again)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(TASKS) - 1), calls())
def test_any_further_change_fails(index, call):
    task = TASKS[index]
    episode = Episode(task.office, task.gold)
    for name, arguments in task.gold:
        episode.call(name, arguments)
    before = episode.office.copy()
    episode.call(*call)
    changed = bool(episode.office.differences(before))
    assert episode.score().value == (not changed)


def test_a_demonstration_is_written_as_the_model_must_write_it():
    template = ChatTemplate(nano_template(), {})
    for task in TASKS[:18]:
        conversation = demonstrate(task)
        text = template.render(conversation["messages"], tools=conversation["tools"])
        assert task.query in text
        made = parse_calls(text.partition(task.query)[2])
        assert made == task.steps


def test_each_answer_tells_what_the_next_step_needs():
    """Every id and address in a step comes from the query or from an earlier answer."""
    for task in TASKS:
        episode = Episode(task.office, [])
        known = task.query
        for name, arguments in task.steps:
            for key, value in arguments.items():
                if key.endswith("_id") or "@" in str(value):
                    assert value in known, (task.query, name, key)
            known += episode.call(name, arguments)


def test_more_than_six_calls_fail():
    task = TASKS[0]
    look = ToolCall("company_directory_find_email_address", {"name": "a"})
    spare = MAX_CALLS - len(task.steps)
    assert run(task, [look] * spare + task.steps).value == 1
    assert run(task, [look] * (spare + 1) + task.steps) == (0.0, "more than 6 calls")


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("calendar_create_evnt", {}, "did you mean 'calendar_create_event'"),
        ("email_delete_email", {}, "email_id: Field required"),
        ("email_delete_email", {"email_id": "1"}, "no e-mail has the id '1'"),
        ("email_delete_email", {"id": "1", "email_id": "1"}, "id: Extra inputs"),
        ("crm_search_customers", {}, "give at least one thing to search for"),
        (
            "project_management_create_task",
            {
                "task_name": "x",
                "assigned_to_email": "no@one.com",
                "list_name": "Backlog",
                "due_date": "2023-12-01",
                "board": "Design",
            },
            "no@one.com is not on the team",
        ),
        (
            "calendar_search_events",
            {"time_min": "tomorrow"},
            "time_min: Value error, time data 'tomorrow' does not match",
        ),
    ],
)
def test_errors_say_what_is_wrong(name, arguments, answer):
    found = call_tool(OFFICE.copy(), name, arguments)
    assert found.startswith("Error: ")
    assert answer in found


def test_an_update_is_checked_by_the_field_s_own_type():
    office = OFFICE.copy()
    event = min(office.tables["events"])
    update = {"event_id": event, "field": "duration", "new_value": "soon"}
    assert call_tool(office, "calendar_update_event", update).startswith("Error: new_value")
    update["new_value"] = "45"
    assert call_tool(office, "calendar_update_event", update) == '"updated"'
    assert office.tables["events"][event]["duration"] == "45"


def test_the_order_of_additions_and_case_do_not_count():
    one, other = OFFICE.copy(), OFFICE.copy()
    emails = [
        {"recipient": "a@b.com", "subject": subject, "body": "Hello"} for subject in ("x", "y")
    ]
    for email in emails:
        call_tool(one, "email_send_email", email)
    for email in reversed(emails):
        call_tool(other, "email_send_email", {**email, "body": "HELLO"})
    assert not one.differences(other)
    call_tool(other, "email_send_email", emails[0])
    assert one.differences(other) == [("emails", 1)]


def test_train_and_test_never_meet():
    num = 8 * len(FAMILIES)
    train = [make_task(SETTINGS, seed, "train", i) for seed in (0, 1) for i in range(num)]
    test = [make_task(SETTINGS, seed, "test", i) for seed in (0, 1) for i in range(num)]
    assert not {task.identity for task in train} & {task.identity for task in test}
    assert not {task.query for task in train} & {task.query for task in test}
    assert {split_of(task.identity) for task in train} == {"train"}
    assert Counter(task.family for task in train) == dict.fromkeys(FAMILIES, 2 * 8)


def test_the_last_wording_of_each_family_is_kept_for_tests():
    kept = {name: family.wordings[-1].partition("{")[0] for name, family in FAMILIES.items()}
    telling = {name: start for name, start in kept.items() if start}
    assert telling
    for name, start in telling.items():
        only = WorkbenchSettings(families=(name,))
        queries = [make_task(only, 3, "train", i).query for i in range(12)]
        assert not [query for query in queries if query.startswith(start)]
        queries = [make_task(only, 3, "test", i).query for i in range(12)]
        assert [query for query in queries if query.startswith(start)]


def test_tasks_are_random_access_and_differ_by_seed():
    again = make_task(SETTINGS, 0, "train", 7)
    assert again.query == TASKS[7].query
    assert not again.office.differences(TASKS[7].office)
    assert make_task(SETTINGS, 1, "train", 7).query != again.query


def test_the_tools_a_task_needs_are_shown():
    for task in TASKS:
        assert {step.name for step in task.steps} <= set(task.tool_names)
        assert len(task.tools) == len(set(task.tool_names))


def test_unknown_families_are_named():
    with pytest.raises(ConfigError, match="did you mean 'delete_task'"):
        WorkbenchSettings.parse({"families": ["delete_tasks"]}, "here")


def test_random_guessing_does_not_succeed():
    rng = random.Random(0)
    acting = [task for task in TASKS if task.gold]
    wins = sum(run(task, rng.choice(acting).gold).value for task in acting)
    assert wins < 0.1 * len(acting)
