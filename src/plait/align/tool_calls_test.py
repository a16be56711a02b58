import json

from plait.align.tool_calls import (
    ToolCallSettings,
    held_out_questions,
    train_conversations,
    train_questions,
)
from plait.grade.toolcall import grade_toolcall

SETTINGS = ToolCallSettings(num_train=54, num_test=54, num_distractors=1, brief=True)


def called(message):
    calls = [call["function"] for call in message.get("tool_calls", [])]
    return f"<TOOLCALL>{json.dumps(calls)}</TOOLCALL>"


def test_each_question_is_a_turn_of_the_demonstration_before_its_call():
    talks = {talk["id"]: talk for talk in train_conversations(SETTINGS, 1)}
    asked = 0
    for question in train_questions(SETTINGS, 1):
        talk = talks[question["id"].partition("-call-")[0]]
        place = len(question["prompt"])
        assert talk["messages"][:place] == question["prompt"]
        assert talk["tools"] == question["tools"]
        right = called(talk["messages"][place])
        assert grade_toolcall("", question["reference"], right).value == 1.0
        assert grade_toolcall("", question["reference"], "Done.").value == 0.0
        names = [tool["function"]["name"] for tool in question["tools"]]
        assert json.loads(question["reference"])["calls"][0]["name"] in names
        asked += 1
    turns = [m for talk in talks.values() for m in talk["messages"] if m.get("tool_calls")]
    assert asked == len(turns)


def test_the_last_turn_may_be_left_out():
    some = SETTINGS.model_copy(update={"closing_share": 0.3})
    ends = [talk["messages"][-1] for talk in train_conversations(some, 1)]
    closing = sum(end["content"] == "Done." for end in ends)
    assert 5 < closing < 30
    assert all(end.get("tool_calls") for end in ends if end["content"] != "Done.")


def test_what_is_asked_was_not_demonstrated():
    demonstrated = {talk["messages"][1]["content"] for talk in train_conversations(SETTINGS, 1)}
    asked = {question["prompt"][1]["content"] for question in held_out_questions(SETTINGS, 1)}
    assert not demonstrated & asked


def test_a_careless_demonstration_differs_in_one_digit_of_an_id():
    given = {"families": ("delete_email_by_id", "set_duration_by_id")}
    right = SETTINGS.model_copy(update=given)
    careless = right.model_copy(update={"care": 0.5})
    slips = 0
    for good, other in zip(
        train_conversations(right, 1), train_conversations(careless, 1), strict=True
    ):
        assert good["messages"][:2] == other["messages"][:2]
        ours, theirs = (called(talk["messages"][2]) for talk in (good, other))
        wrong = sum(a != b for a, b in zip(ours, theirs, strict=True))
        assert wrong in (0, 1)
        slips += wrong
    assert 10 < slips < 44
    assert list(held_out_questions(right, 1)) == list(held_out_questions(careless, 1))
