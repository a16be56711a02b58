"""The texts in chains_golden.txt are made by `python src/plait/align/chains_test.py`."""

import json
import re
from itertools import islice
from pathlib import Path

import pytest

from plait.align import chains
from plait.align.chains import ChainItem, ChainSettings, chain_item, split_of
from plait.core.errors import ConfigError
from plait.grade.number import grade_number

GOLDEN = Path(__file__).with_name("chains_golden.txt")

# So few items that all of them are drawn.
CROWDED = ChainSettings(num_train=3000, num_test=300, num_pairs=1, chain_lengths=(1,))


def expected(question: str) -> tuple[list[str], list[int]]:
    """Answer a question from its text alone: the lines of the trace, the running values."""
    listed, asked = question.split("\n")
    digits = {letter: int(digit) for letter, digit in re.findall(r"\b([A-Z])(\d)\b", listed)}
    chain = re.findall(r"\b([A-Z])\b", asked)
    values, operands = [], []
    for letter in chain:
        operands.append(digits[letter])
        if "sum" in asked or "Add" in asked:
            values.append(sum(operands) % 10)
        elif "5 or more" in asked:
            values.append(len([digit for digit in operands if digit > 4]))
        elif "last" in asked:
            values.append(digits[letter])
        else:
            assert "argest" in asked
            values.append(sorted(operands)[-1])
    return [f"{letter}{digit}" for letter, digit in zip(chain, operands, strict=True)], values


@pytest.mark.parametrize("split", ["train", "test"])
def test_traces_and_answers_follow_from_the_text_of_the_question(split):
    settings = ChainSettings(families=tuple(chains.PHRASINGS))
    lengths, wordings = set(), set()
    for index in range(400):
        item = chain_item(settings, 3, split, index)
        operands, values = expected(item.question)
        assert len(item.trace) == len(values)
        for line, operand, value in zip(item.trace, operands, values, strict=True):
            assert line.startswith(f"{operand} ")
            assert grade_number("", str(value), line).value == 1.0
            assert "\n" not in line
        assert grade_number(item.question, str(values[-1]), item.answer).value == 1.0
        assert len(item.digits) == settings.num_pairs
        lengths.add(len(values))
        wordings.add((item.family, item.phrasing))
    assert lengths == set(settings.chain_lengths)
    assert len(wordings) == sum(map(len, chains.PHRASINGS.values()))


def test_an_item_depends_on_seed_split_and_index_alone():
    settings = ChainSettings()
    forward = [chain_item(settings, 0, "train", index) for index in range(40)]
    backward = [chain_item(settings, 0, "train", index) for index in reversed(range(40))]
    assert forward == backward[::-1]
    longer = settings.model_copy(update={"num_train": 7, "num_test": 9})
    assert [chain_item(longer, 0, "train", index) for index in range(40)] == forward
    for other in (
        [chain_item(settings, 1, "train", index) for index in range(40)],
        [chain_item(settings, 0, "test", index) for index in range(40)],
    ):
        assert not {item.identity for item in other} & {item.identity for item in forward}


def test_families_come_in_turns():
    settings = ChainSettings(families=("sum", "sum", "count"))
    found = [chain_item(settings, 0, "train", index).family for index in range(6)]
    assert found == ["sum", "sum", "count"] * 2


def test_the_splits_never_meet_whatever_the_seeds():
    train, test = (
        {
            chain_item(CROWDED, seed, split, index).identity
            for seed in range(3)
            for index in range(600)
        }
        for split in ("train", "test")
    )
    # 16 letters with 10 digits in 3 families: all of them were drawn, each on one side.
    assert not train & test
    assert len(train) + len(test) > 470
    assert 0.05 < len(test) / (len(train) + len(test)) < 0.15


def test_wording_and_order_of_the_list_do_not_move_an_item_to_the_other_split():
    item = chain_item(ChainSettings(), 0, "test", 0)
    same = item._replace(digits=dict(reversed(item.digits.items())), phrasing=1 - item.phrasing)
    assert same.question != item.question
    assert split_of(same) == split_of(item) == "test"


def test_shares_of_removed_and_shortened_traces():
    settings = ChainSettings(num_train=1500)
    removed, kept_lines = 0, []
    for index, record in enumerate(chains.train_conversations(settings, 5)):
        item = chain_item(settings, 5, "train", index)
        user, assistant = record["messages"]
        assert user == {"role": "user", "content": item.question}
        assert assistant["role"] == "assistant"
        assert assistant["content"] == item.answer
        assert record["family"] == item.family
        if "reasoning_content" not in assistant:
            removed += 1
            continue
        lines = assistant["reasoning_content"].splitlines()
        assert lines == item.trace[: len(lines)]
        if len(lines) < len(item.trace):
            kept_lines.append(len(lines))
    # Four standard deviations of 1500 draws.
    assert removed / 1500 == pytest.approx(0.10, abs=0.031)
    assert len(kept_lines) / 1500 == pytest.approx(0.05, abs=0.023)
    assert set(kept_lines) == set(range(max(settings.chain_lengths)))


def test_shares_may_be_nothing_or_everything():
    plain = ChainSettings(num_train=200, reasoning_off_share=0, truncated_share=0)
    for index, record in enumerate(chains.train_conversations(plain, 0)):
        trace = chain_item(plain, 0, "train", index).trace
        assert record["messages"][-1]["reasoning_content"] == "\n".join(trace)
    off = ChainSettings(num_train=200, reasoning_off_share=1, truncated_share=0)
    messages = [record["messages"][-1] for record in chains.train_conversations(off, 0)]
    assert not any("reasoning_content" in message for message in messages)


def test_some_families_always_show_a_trace():
    settings = ChainSettings(
        num_train=240,
        families=("sum", "last"),
        traced_families=("last",),
        reasoning_off_share=0.5,
        truncated_share=0.5,
    )
    kept = {"sum": [], "last": []}
    for index, record in enumerate(chains.train_conversations(settings, 0)):
        trace = record["messages"][-1].get("reasoning_content")
        whole = "\n".join(chain_item(settings, 0, "train", index).trace)
        kept[record["family"]].append("off" if trace is None else trace == whole)
    # the draw that takes a sum's whole trace leaves that of the other family as it is
    assert "off" not in kept["last"]
    for ways in (kept["sum"].count("off"), kept["last"].count(True)):
        assert ways / 120 == pytest.approx(0.5, abs=0.18)
    assert True not in kept["sum"]


def test_held_out_questions_carry_their_reference():
    settings = ChainSettings(num_test=50)
    questions = list(chains.held_out_questions(settings, 0))
    assert len({question["id"] for question in questions}) == 50
    for question in questions:
        assert question["verifier"] == "number"
        (message,) = question["prompt"]
        assert question["reference"] == str(expected(message["content"])[1][-1])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"families": []}, "families"),
        ({"families": ["sums"]}, "families"),
        ({"num_pairs": 3}, r"chain_lengths must lie in 1..num_pairs = 3, found \(2, 3, 4, 5\)"),
        ({"chain_lengths": [0, 1]}, "chain_lengths"),
        ({"num_pairs": 99}, "num_pairs"),
        ({"reasoning_off_share": 0.7, "truncated_share": 0.4}, "0.7 and truncated_share 0.4"),
        ({"num_items": 3}, "unknown key 'num_items'; did you mean"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(table, message):
    with pytest.raises(ConfigError, match=message):
        ChainSettings.parse(table, "recipe")


def golden_text() -> str:
    settings = ChainSettings(num_train=24, num_test=4, truncated_share=0.2)
    records = [
        *islice(chains.train_conversations(settings, 0), 24),
        *chains.held_out_questions(settings, 0),
    ]
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def test_golden_texts():
    assert golden_text() == GOLDEN.read_text(encoding="utf-8")


def test_the_running_sum_is_of_digits():
    item = ChainItem("sum", {"A": 9, "B": 8, "C": 7}, ("C", "A", "B"), 0)
    assert item.running == [7, 6, 4]
    assert item._replace(family="count").running == [1, 2, 3]
    assert item._replace(family="largest").running == [7, 9, 9]


if __name__ == "__main__":
    GOLDEN.write_text(golden_text(), encoding="utf-8")
