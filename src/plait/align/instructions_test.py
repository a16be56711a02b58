import json

import pytest

from plait.align.instructions import (
    KINDS,
    InstructionSettings,
    held_out_questions,
    instruction_item,
    train_conversations,
    train_questions,
)
from plait.core.errors import ConfigError
from plait.grade.instruction.grade import grade_instruction

SETTINGS = InstructionSettings(num_train=300, num_test=300, max_instructions=3)


def test_every_answer_follows_its_instructions_and_names_the_cards():
    met = set()
    for index, (talk, prompt) in enumerate(
        zip(train_conversations(SETTINGS, 1), train_questions(SETTINGS, 1), strict=True)
    ):
        user, assistant = talk["messages"]
        assert prompt["prompt"] == [user]
        score = grade_instruction(user["content"], prompt["reference"], assistant["content"])
        assert score.value == 1.0, (user, assistant, score.reason)
        item = instruction_item(SETTINGS, 1, "train", index)
        assert all(card in assistant["content"] for card in item.cards)
        met |= set(item.ids)
    assert met == set(KINDS)


def test_a_careless_answer_overlooks_some_instructions_and_nothing_else():
    careless = SETTINGS.model_copy(update={"care": 0.7})
    followed = asked = 0
    for talk, right, prompt in zip(
        train_conversations(careless, 1),
        train_conversations(SETTINGS, 1),
        train_questions(careless, 1),
        strict=True,
    ):
        assert talk["messages"][0] == right["messages"][0]
        reference, text = prompt["reference"], talk["messages"][1]["content"]
        number = len(json.loads(reference)["instruction_id_list"])
        followed += round(grade_instruction("", reference, text).value * number)
        asked += number
    assert 0.65 < followed / asked < 0.75
    assert list(held_out_questions(careless, 1)) == list(held_out_questions(SETTINGS, 1))


def test_a_plain_list_of_the_cards_follows_none_of_them():
    for index in range(60):
        item = instruction_item(SETTINGS, 2, "train", index)
        [question] = [list(train_questions(SETTINGS, 2))[index]]
        plain = ", ".join(item.cards)
        assert grade_instruction("", question["reference"], plain).value == 0.0


def test_the_splits_never_meet_whatever_the_seeds():
    train = {instruction_item(SETTINGS, 1, "train", i).identity for i in range(300)}
    test = {instruction_item(SETTINGS, 7, "test", i).identity for i in range(300)}
    assert not train & test
    texts = {talk["messages"][0]["content"] for talk in train_conversations(SETTINGS, 1)}
    assert not texts & {q["prompt"][0]["content"] for q in held_out_questions(SETTINGS, 1)}


def test_unknown_kinds_are_named():
    with pytest.raises(ConfigError, match=r"unknown instruction 'startend:quote'; did you mean"):
        InstructionSettings.parse({"kinds": ["startend:quote"]}, "recipe")
