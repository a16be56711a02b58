import pytest

from plait.align.turns import attempt_sample, following_ids
from plait.core.errors import RequestError
from plait.data.tokenizer import Tokenizer

PROMPT = [{"role": "user", "content": "Cancel it."}]
CALL = {"role": "assistant", "content": '<TOOLCALL>[{"name": "x", "arguments": {}}]</TOOLCALL>'}
ANSWER = [CALL, {"role": "tool", "content": "gone"}, {"role": "assistant", "content": "Done."}]


@pytest.fixture(scope="module")
def tokenizer(base_model):
    return Tokenizer.from_directory(base_model)


def learnt(sample, tokenizer):
    ids = [i for i, weight in zip(sample.ids, sample.weights, strict=True) if weight]
    return tokenizer.decode(ids)


def test_every_turn_is_learnt_and_no_response_is(tokenizer):
    sample = attempt_sample(PROMPT, ANSWER, None, tokenizer)
    assert "gone" in tokenizer.decode(sample.ids)
    text = learnt(sample, tokenizer)
    assert "gone" not in text
    assert "Cancel" not in text
    assert text.count("<SPECIAL_12>") == 2
    assert text.startswith("<TOOLCALL>")
    assert "Done." in text


def test_a_trace_stays_where_a_server_would_drop_it(tokenizer):
    traced = [{**ANSWER[0], "reasoning_content": "it must go"}, *ANSWER[1:-1]]
    traced.append({**ANSWER[-1], "reasoning_content": "gone now"})
    sample = attempt_sample(PROMPT, traced, None, tokenizer)
    assert "it must go" in learnt(sample, tokenizer)
    assert "gone now" in learnt(sample, tokenizer)


def test_turns_with_and_without_a_trace_cannot_be_of_one_answer(tokenizer):
    traced = [{**ANSWER[0], "reasoning_content": "it must go"}, *ANSWER[1:]]
    with pytest.raises(RequestError, match="some turns of the answer have reasoning_content"):
        attempt_sample(PROMPT, traced, None, tokenizer)


def test_what_follows_a_turn_is_what_the_template_prints(tokenizer):
    between = following_ids(tokenizer, [ANSWER[1]], thinking=False)
    whole = tokenizer.render([*PROMPT, CALL, ANSWER[1]], enable_thinking=False)
    assert whole.endswith(tokenizer.decode(between))
    with pytest.raises(RequestError, match="begins with a turn of the assistant"):
        attempt_sample(PROMPT, ANSWER[1:], None, tokenizer)
