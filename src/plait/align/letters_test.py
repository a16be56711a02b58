import pytest

from plait.align.letters import (
    LetterSettings,
    held_out_questions,
    letter_item,
    preferences,
    train_conversations,
    train_questions,
)
from plait.core.errors import ConfigError
from plait.grade.reply import grade_reply

SETTINGS = LetterSettings(num_train=300, num_test=60)


def test_letters_range_from_poor_to_right():
    worth = []
    for index, talk in enumerate(train_conversations(SETTINGS, 1)):
        item = letter_item(1, "train", index)
        worth.append(grade_reply("", item.reference, talk["messages"][1]["content"]).value)
    assert 0.5 < sum(worth) / len(worth) < 0.8
    assert min(worth) < 0.3
    assert max(worth) == 1
    careful = LetterSettings(care=1.0, num_train=40)
    for index, talk in enumerate(train_conversations(careful, 1)):
        item = letter_item(1, "train", index)
        assert grade_reply("", item.reference, talk["messages"][1]["content"]).value == 1


def test_the_better_letter_is_preferred():
    for index, pair in enumerate(preferences(SETTINGS, 2)):
        item = letter_item(2, "train", index)
        chosen, rejected = (
            grade_reply("", item.reference, pair[side]).value for side in ("chosen", "rejected")
        )
        assert chosen > rejected


def test_letters_that_are_all_right_give_no_preference():
    with pytest.raises(ConfigError, match=r"letters\.care = 1 makes all letters equally good"):
        list(preferences(LetterSettings(care=1.0), 2))


def test_what_is_held_out_is_never_asked_in_training_whatever_the_seed():
    def asked(questions):
        return {question["prompt"][0]["content"] for question in questions}

    test = asked(held_out_questions(SETTINGS, 1))
    assert not test & asked(train_questions(SETTINGS, 2))
    assert not test & {pair["prompt"] for pair in preferences(SETTINGS, 3)}
