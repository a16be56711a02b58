"""The runner against scripted answers whose scores are known."""

import json
import math

import pytest

from plait.core.errors import DataError
from plait.engine.request import Completion, SamplingParams
from plait.eval.run import (
    Question,
    Setting,
    ask,
    check_verifiers,
    mean_score,
    read_questions,
    summarise,
    switched,
)
from plait.grade.score import Score

VERIFIERS = {
    "same": lambda question, reference, answer: Score(float(reference == answer), "compared")
}
THINK = Setting("think", True, SamplingParams(max_tokens=9))
NO_THINK = Setting("no_think", False, SamplingParams(max_tokens=9))


def question(index, family="a", reference="1"):
    prompt = [{"role": "user", "content": f"question {index}"}]
    return Question(f"q{index}", family, prompt, "same", reference)


def completion(content, reasoning="r", num_closing_tags=1, num_tokens=5, finish_reason="stop"):
    ids = list(range(num_tokens))
    return Completion(
        prompt_ids=[1],
        token_ids=ids,
        logprobs=None,
        forced=[False] * num_tokens,
        text="",
        reasoning=reasoning,
        content=content,
        finish_reason=finish_reason,
        num_reasoning_tokens=num_tokens - 2,
        num_closing_tags=num_closing_tags,
    )


def test_scores_are_averaged_over_all_and_over_families():
    questions = [question(0), question(1), question(2, "b"), question(3, "b", "2")]
    seen = []

    def generate(asked, params):
        seen.extend(zip(asked, params, strict=True))
        return [
            completion("1"),
            completion("7", num_closing_tags=2),
            completion("1", num_closing_tags=0, num_tokens=9, finish_reason="length"),
            completion("2"),
        ]

    answers = ask(questions, THINK, generate, VERIFIERS)
    assert [answer.score for answer in answers] == [1, 0, 1, 1]
    assert [answer.well_formed for answer in answers] == [True, False, False, True]
    assert [each.prompt[-1]["content"] for each, _ in seen[:2]] == [
        "question 0 /think",
        "question 1 /think",
    ]
    assert len({params.seed for _, params in seen}) == 4
    assert all(params.max_tokens == 9 for _, params in seen)

    result = summarise(THINK, answers)
    # Sample deviation of 1, 0, 1, 1 is 1/2.
    assert result.overall == pytest.approx((0.75, 0.25, 4))
    assert result.families["a"] == pytest.approx((0.5, 0.5, 2))
    assert result.families["b"] == (1.0, 0.0, 2)
    assert (result.well_formed, result.cut_off) == (0.5, 0.25)
    assert (result.total_tokens, result.reasoning_tokens) == (6.0, 4.0)


def test_without_thinking_any_trace_or_tag_is_malformed():
    given = [
        completion("1", reasoning=None, num_closing_tags=0),
        completion("1", reasoning=None, num_closing_tags=1),
        completion("1", reasoning="still thinking", num_closing_tags=1),
    ]
    answers = ask([question(i) for i in range(3)], NO_THINK, lambda *_: given, VERIFIERS)
    assert [answer.well_formed for answer in answers] == [True, False, False]


def test_switching_leaves_the_question_as_it_is():
    conversation = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert switched(conversation, False)[-1] == {"role": "user", "content": "u /no_think"}
    assert conversation[-1]["content"] == "u"


def test_standard_error_of_few():
    assert mean_score([0.25]) == (0.25, 0.0, 1)
    assert mean_score([0.0, 1.0, 1.0]).standard_error == pytest.approx(1 / 3)
    assert math.isclose(mean_score([0.1] * 10).standard_error, 0.0, abs_tol=1e-12)


def test_questions_are_read_up_to_the_limit(tmp_path):
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(question(i)._asdict()) + "\n" for i in range(5)))
    assert read_questions(file, 2) == [question(0), question(1)]
    assert len(read_questions(file)) == 5
    file.write_text(json.dumps(question(0)._asdict() | {"id": 7}))
    assert read_questions(file)[0].id == "7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no questions"),
        ("{", "line 1: a question has the fields id, family"),
        ('{"id": "x"}', "line 1: .*KeyError: 'family'"),
        ("[]", "line 1: .*TypeError"),
        (json.dumps(question(0)._asdict() | {"prompt": []}), "line 1: .*IndexError"),
        (
            json.dumps(question(0)._asdict() | {"prompt": [{"role": "assistant", "content": "x"}]}),
            "line 1: the prompt must end with a message of text",
        ),
        (json.dumps(question(0)._asdict() | {"prompt": "x"}), "line 1: prompt is 'x'; .* a list"),
        (json.dumps(question(0)._asdict() | {"prompt": ["x"]}), "line 1: prompt is .* of objects"),
        (json.dumps(question(0)._asdict() | {"reference": 7}), "line 1: reference is 7; .* a text"),
        (json.dumps(question(0)._asdict() | {"verifier": ["x"]}), "line 1: verifier is .* a text"),
        (json.dumps(question(0)._asdict() | {"family": None}), "line 1: family is None; .* text"),
        (json.dumps(question(0)._asdict() | {"tools": ["x"]}), "line 1: tools is .* of objects"),
    ],
)
def test_bad_questions_are_named(tmp_path, text, message):
    file = tmp_path / "test.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_questions(file)
    with pytest.raises(DataError, match="no readable questions"):
        read_questions(tmp_path / "absent.jsonl")


def test_unknown_verifiers_are_refused_before_generation():
    odd = question(0)._replace(verifier="sane")
    with pytest.raises(DataError, match=r"'q0': no verifier 'sane'; did you mean 'same'"):
        check_verifiers([odd], VERIFIERS)
    with pytest.raises(DataError):
        ask([odd], THINK, lambda *_: pytest.fail("generated"), VERIFIERS)
