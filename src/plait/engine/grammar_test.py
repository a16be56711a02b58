import json
import re

import pytest

from plait.core.errors import RequestError
from plait.data.train_tokenizer import train_tokenizer
from plait.engine.engine import Engine
from plait.engine.request import Grammar, SamplingParams
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "of": {"enum": ["cat", "mat"]}},
    "required": ["ok", "of"],
    "additionalProperties": False,
}
JSON = Grammar(kind="json_schema", source=json.dumps(SCHEMA))
REGEX = Grammar(kind="regex", source="(cat|mat)[0-9]{2,3}")
LARK = Grammar(kind="lark", source='start: "<" /[a-c]{3}/ ">"')
QUESTION = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def engine() -> Engine:
    text = "hello world, the cat sat on it. User Assistant <think>\nso\n</think>\n\nyes é € "
    tokenizer = train_tokenizer([text] * 4, vocab_size=300)
    spec = ModelSpec.preset("test", vocab_size=tokenizer.vocab_size + 7)
    return Engine(init_weights(HybridLM(spec), seed=0), tokenizer)


def follows(grammar: Grammar, content: str) -> bool:
    if grammar is JSON:
        value = json.loads(content)
        return set(value) == {"ok", "of"} and value["of"] in ("cat", "mat")
    pattern = REGEX.source if grammar is REGEX else "<[a-c]{3}>"
    return re.fullmatch(pattern, content) is not None


def test_answers_follow_their_grammars_with_and_without_a_trace(engine):
    asked = [
        (grammar, budget, temperature)
        for grammar in (JSON, REGEX, LARK)
        for budget, temperature in ((0, 3.0), (1, 0.0), (12, 3.0))
    ]
    params = [
        SamplingParams(
            grammar=grammar,
            max_thinking_tokens=budget,
            budget_grace_tokens=3,
            temperature=temperature,
            seed=budget,
            max_tokens=120,
        )
        for grammar, budget, temperature in asked
    ]
    for thinks in (True, False):
        answers = engine.generate([QUESTION] * len(asked), params, enable_thinking=thinks)
        for (grammar, budget, _), answer in zip(asked, answers, strict=True):
            assert follows(grammar, answer.content), answer.content
            assert answer.finish_reason == "stop"
            assert answer.well_formed
            if thinks:
                assert answer.num_reasoning_tokens <= budget + 3


def test_a_plain_prompt_is_constrained_at_once(engine):
    params = SamplingParams(grammar=REGEX, max_tokens=20, min_tokens=20, seed=0)
    (answer,) = engine.generate(["hello"], params)
    assert follows(REGEX, answer.text)


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("json_schema", "{", "json_schema cannot be"),
        ("json_schema", '{"type": "unheard"}', "json_schema cannot be"),
        ("json_schema", '{"allOf": [{"type": "string"}, {"type": "number"}]}', "json_schema"),
        (
            "json_schema",
            '{"type": "integer", "multipleOf": 999983}',
            "multiples of 999983.0; their",
        ),
        ("json_schema", '{"allOf": [{"multipleOf": 997}, {"multipleOf": 0.001}]}', "0.001 and 997"),
        ("json_schema", '{"type": "number", "multipleOf": 1e-320}', "multiples of 1e-320"),
        ("json_schema", '{"type": "number", "multipleOf": -}', "json_schema cannot be"),
        ("regex", "(", "regex cannot be"),
        ("lark", "start: nowhere", "lark cannot be"),
    ],
)
def test_grammars_that_cannot_be_used_are_refused_at_once(engine, kind, source, message):
    with pytest.raises(RequestError, match=message):
        engine.submit("hi", SamplingParams(grammar=Grammar(kind=kind, source=source)))
    assert not engine.has_work
