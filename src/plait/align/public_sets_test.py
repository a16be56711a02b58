"""Three rows of each public set, by hand, in the fields that its card on the hub gives."""

import json

import pytest

from plait.align.public_sets import FORMS, converted
from plait.align.records import preference_sides, prompt_messages
from plait.align.sft import samples_of
from plait.core.errors import DataError
from plait.data.train_tokenizer import train_tokenizer

USER = [{"role": "user", "content": "What is 2 + 2?"}]


def helpsteer(score, language="english"):
    return {
        "domain": "general",
        "language": language,
        "context": USER,
        "response1": "Four.",
        "response2": "Five.",
        "overall_preference": score,
        "individual_preference": [{"score": score, "reasoning": "...", "feedback": "..."}],
    }


def chat(language):
    return {
        "conversation_id": "a1",
        "model": "vicuna-13b",
        "conversation": [*USER, {"role": "assistant", "content": "4"}],
        "turn": 1,
        "language": language,
        "openai_moderation": [],
        "redacted": False,
    }


def xlam(arguments):
    tool = {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"a": {"description": "first", "type": "int", "default": 0}},
    }
    return {
        "id": 7,
        "query": "Add 2 and 2",
        "answers": json.dumps([{"name": "add", "arguments": arguments}]),
        "tools": json.dumps([tool]),
    }


GLAIVE_SYSTEM = (
    "SYSTEM: You are a helpful assistant with access to the following functions. Use them if "
    'required -\n{\n "name": "rate",\n "parameters": {"type": "object", "properties": {}}\n}\n'
)
GLAIVE_CALL = (
    "USER: 500 USD in EUR?\n\n\nASSISTANT: <functioncall> "
    """{"name": "rate", "arguments": '{"base": "USD"}'} <|endoftext|>\n\n\n"""
    'FUNCTION RESPONSE: {"rate": 0.85}\n\n\nASSISTANT: 425 EUR. <|endoftext|>'
)
TOOL = json.dumps({"name": "weather", "description": "Weather.", "parameters": {}})
SOLVED = "<think>\n2 and 2\n</think>\n\nFour."


def when2call(**more):
    return {"tools": [TOOL], "messages": USER, **more}


def post_training(content, reasoning="on"):
    turn = {"role": "assistant", "content": content}
    return {"uuid": "u", "category": "math", "reasoning": reasoning, "messages": [*USER, turn]}


ROWS = {
    "helpsteer3": [helpsteer(-2), helpsteer(3), helpsteer(1)],
    "helpsteer3_prompts": [helpsteer(0), helpsteer(3), helpsteer(1)],
    "chat_prompts": [chat("English"), chat("English"), {**chat("English"), "country": "US"}],
    "instructed_prompts": [chat("English"), chat("English"), {**chat("English"), "country": "US"}],
    "xlam": [xlam({"a": 2}), xlam({}), xlam({"a": "2"})],
    "glaive": [
        {"system": GLAIVE_SYSTEM, "chat": GLAIVE_CALL},
        {"system": "SYSTEM: You are helpful.\n", "chat": "USER: Hi\n\n\nASSISTANT: Hello"},
        {"system": GLAIVE_SYSTEM * 2, "chat": "USER: Hi\n\n\nASSISTANT: I cannot. <|endoftext|>"},
    ],
    "when2call": [
        when2call(messages=[*USER, {"role": "assistant", "content": answer}])
        for answer in ("Which one?", "I cannot.", '<TOOLCALL>[{"name": "weather"}]</TOOLCALL>')
    ],
    "when2call_preferences": [
        when2call(chosen_response=chosen, rejected_response="Four.")
        for chosen in ("Which one?", "I cannot.", "Sorry.")
    ],
    "open_math_reasoning": [
        {"problem": "2 + 2?", "generated_solution": text, "expected_answer": "4"}
        for text in (SOLVED, "Four.", "<think></think>Four.")
    ],
    "open_code_reasoning": [
        {"id": "c", "input": "Print 4.", "output": text, "solution": "print(4)"}
        for text in (SOLVED, "print(4)", "<think>short</think>print(4)")
    ],
    "nemotron_post_training": [
        post_training(SOLVED),
        post_training("Four.", "off"),
        post_training("<think></think>Four.", "off"),
    ],
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["What is 2 + 2? Four. </think>\n\n<think>\n"] * 9, vocab_size=320)


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_every_set_become_records_that_are_used_as_they_are(form, tokenizer):
    assert len(ROWS[form]) == 3
    for row in ROWS[form]:
        record = converted(form, row)
        assert record is not None
        if "messages" in record:
            assert samples_of(record, tokenizer)
        elif "chosen" in record:
            assert preference_sides(record)
        else:
            assert prompt_messages(record)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_of_another_set_is_refused_by_name(form):
    with pytest.raises(DataError, match=rf"file, line 3: not of the form {form}"):
        converted(form, {"id": "file, line 3", "text": "Once upon a time"})


def test_preferences_point_the_right_way_and_ties_and_other_languages_are_left_out():
    first, second = converted("helpsteer3", helpsteer(-1)), converted("helpsteer3", helpsteer(1))
    assert (first["chosen"], first["rejected"]) == ("Four.", "Five.")
    assert (second["chosen"], second["rejected"]) == ("Five.", "Four.")
    assert converted("helpsteer3", helpsteer(0)) is None
    assert converted("helpsteer3_prompts", helpsteer(0))["prompt"] == USER
    assert converted("helpsteer3_prompts", helpsteer(1, "french")) is None
    assert converted("chat_prompts", chat("German")) is None
    assert converted("instructed_prompts", chat("German")) is None


def test_calls_and_traces_are_found_in_the_text():
    talk = converted("glaive", ROWS["glaive"][0])
    roles = [message["role"] for message in talk["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant"]
    [call] = talk["messages"][1]["tool_calls"]
    assert call["function"] == {"name": "rate", "arguments": {"base": "USD"}}
    assert [tool["function"]["name"] for tool in talk["tools"]] == ["rate"]
    answers = [converted("nemotron_post_training", row) for row in ROWS["nemotron_post_training"]]
    turns = [answer["messages"][-1] for answer in answers]
    assert [turn["content"] for turn in turns] == ["Four."] * 3
    assert [turn.get("reasoning_content") for turn in turns] == ["2 and 2", None, None]


def test_calls_of_post_training_data_keep_their_tools():
    call = {"id": "1", "type": "function", "function": {"name": "rate", "arguments": "{}"}}
    row = post_training(None)
    row["messages"][-1]["tool_calls"] = [call]
    with pytest.raises(DataError, match="tools are called, but metadata declares none"):
        converted("nemotron_post_training", row)
    plain = post_training("Four.", "off") | {"metadata": "of no form"}
    assert converted("nemotron_post_training", plain)["tools"] is None
    record = converted(
        "nemotron_post_training", row | {"metadata": json.dumps({"tools": [{"name": "rate"}]})}
    )
    assert record["messages"][-1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert record["tools"] == [{"type": "function", "function": {"name": "rate"}}]
