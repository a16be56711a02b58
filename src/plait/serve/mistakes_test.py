"""What a client gets wrong is a 400 that names it, and the server lives."""

import json
import time

import httpx2
import openai
import pytest

from plait.serve.conftest import CHAT, HELLO, MODEL, PLAIN, error_of, post, serving, tiny_engine

TOOL = {"type": "function", "function": {"name": "weather"}}
NEVER = {"type": "string", "minLength": 3, "maxLength": 1}

MISTAKES = {
    "unknown field": (CHAT, {"max_thinking_token": 5}, "did you mean 'max_thinking_tokens'"),
    "nested unknown field": (CHAT, {"nvext": {"max_thinking": 5}}, "nvext.max_thinking"),
    "two budgets": (CHAT, {"max_thinking_tokens": 5, "thinking_token_budget": 6}, "contradict"),
    "two lengths": (CHAT, {"max_tokens": 5, "max_completion_tokens": 6}, "contradict"),
    "negative budget": (CHAT, {"max_thinking_tokens": -2}, "max_thinking_tokens = -2"),
    "negative nvext budget": (CHAT, {"nvext": {"max_thinking_tokens": -7}}, "= -7"),
    "effort": (CHAT, {"reasoning_effort": "high"}, "max_thinking_tokens"),
    "temperature": (CHAT, {"temperature": -1}, "temperature = -1"),
    "wrong type": (CHAT, {"temperature": "warm"}, "'temperature'"),
    "no messages": (CHAT, {"messages": []}, "messages"),
    "role": (CHAT, {"messages": [{"role": "root", "content": ""}]}, "messages.0.role"),
    "image": (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "content",
    ),
    "late system message": (
        CHAT,
        {"messages": [*HELLO, {"role": "system", "content": ""}]},
        "system",
    ),
    "half a surrogate pair": (
        CHAT,
        {"messages": [{"role": "user", "content": "\ud800"}]},
        "surrogate pair",
    ),
    "surrogate in a tool": (
        CHAT,
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": "\ud800"}}}]},
        "surrogate",
    ),
    "prompt over context": (
        CHAT,
        {"messages": [{"role": "user", "content": "a b " * 3000}]},
        "2048",
    ),
    "output over context": (CHAT, {"max_tokens": 5000}, "lower max_tokens"),
    "too many choices": (CHAT, {"n": 1000}, "'n'"),
    "tool_choice without tools": (CHAT, {"tool_choice": "required"}, "tools is empty"),
    "unknown tool": (
        CHAT,
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "wether"}}},
        "did you mean 'weather'",
    ),
    "tool and form": (
        CHAT,
        {"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}},
        "leave one of them out",
    ),
    "tool schema": (
        CHAT,
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 3}}}],
            "tool_choice": "required",
        },
        "",
    ),
    "unsatisfiable schema": (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": NEVER}}},
        "minLength",
    ),
    "json_schema is missing": (CHAT, {"response_format": {"type": "json_schema"}}, "json_schema"),
    "bad regex": (CHAT, {"structured_outputs": {"regex": "["}}, "regex"),
    "deep schema": (
        CHAT,
        {"structured_outputs": {"json": '{"a":' * 30_000 + "1" + "}" * 30_000}},
        "structured_outputs.json is not valid JSON: maximum recursion depth",
    ),
    "half a surrogate pair to stop at": (CHAT, {"stop": "\ud800"}, "characters of Unicode"),
    "two forms": (CHAT, {"structured_outputs": {"regex": "a", "choice": ["b"]}}, "several forms"),
    "top_logprobs alone": (CHAT, {"top_logprobs": 2}, "logprobs"),
    "too many top_logprobs": (CHAT, {"logprobs": True, "top_logprobs": 200}, "top_logprobs"),
    "stream_options alone": (CHAT, {"stream_options": {"include_usage": True}}, "stream"),
    "bad bias": (CHAT, {"logit_bias": {"many": 1}}, "logit_bias"),
    "bias of an unknown token": (CHAT, {"logit_bias": {"99999999": 1}}, "99999999"),
    "empty stop": (CHAT, {"stop": [""]}, "stop"),
    "many stops": (CHAT, {"stop": [str(i) for i in range(65)]}, "up to 64 texts"),
    "a long stop": (CHAT, {"stop": "a" * 1025}, "1,024 characters"),
    "stop token": (CHAT, {"stop_token_ids": [3, 99999999]}, "stop_token_ids holds token id 9999"),
    "negative stop token": (CHAT, {"stop_token_ids": [-1]}, "-1"),
    "a long regex": (CHAT, {"structured_outputs": {"regex": "a" * 2**18 + "b"}}, "262,145"),
    "many choices to choose": (
        CHAT,
        {"structured_outputs": {"choice": [f"choice {i}" for i in range(50_000)]}},
        "allowed: 262,144",
    ),
    "empty prompt": (PLAIN, {"prompt": ""}, "prompt is empty"),
    "no prompts": (PLAIN, {"prompt": []}, "prompt is empty"),
    "token id": (PLAIN, {"prompt": [1, 99999999]}, "99999999"),
    "negative token id": (PLAIN, {"prompt": [-1]}, "-1"),
    "huge token id": (PLAIN, {"prompt": [10**30]}, "prompt"),
    "no output": (PLAIN, {"prompt": "a", "max_tokens": 0}, "max_tokens = 0"),
    "scored stream": (PLAIN, {"prompt": "a", "echo": True, "logprobs": 1, "stream": True}, "echo"),
    "detokenize": ("/detokenize", {"tokens": [10**9]}, "1000000000"),
    "tokenize both": ("/tokenize", {"prompt": "a", "messages": HELLO}, "either"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_400_that_names_it(tiny, mistake):
    path, fields, said = MISTAKES[mistake]
    body = {"messages": HELLO, **fields} if path == CHAT else fields
    response = httpx2.post(tiny.url + path, content=json.dumps(body), timeout=30, headers=JSON)
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    assert said in error["message"], error["message"]
    assert tiny.worker.num_open == 0


JSON = {"Content-Type": "application/json"}
BODIES = {
    "malformed": b'{"messages": [',
    "not an object": b"[1]",
    "empty": b"",
    "not UTF-8": b'{"messages": "\xff\xfe"}',
    "deep": b'{"messages":' + b"[" * 100_000,
    "not finite": b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
    "a huge number": b'{"messages": [{"role": "user", "content": "a"}], "seed": '
    + b"9" * 5000
    + b"}",
}


LONG_NAME = "x" * 200_000
MANY_MISTAKES = {
    "unknown fields": (CHAT, {f"field {i}": 1 for i in range(20_000)}),
    "a long name": (CHAT, {LONG_NAME: 1}),
    "a long model": (CHAT, {"messages": HELLO, "model": LONG_NAME}),
    "messages": (CHAT, {"messages": [{"role": "root", "content": 5}] * 20_000}),
    "tokens": ("/detokenize", {"tokens": ["x"] * 100_000}),
    "prompts": (PLAIN, {"prompt": [{}] * 20_000}),
    "bias": (CHAT, {"messages": HELLO, "logit_bias": dict.fromkeys(range(20_000), "much")}),
    "temperatures": (CHAT, {"messages": HELLO, "temperature": [1] * 100_000}),
}


@pytest.mark.parametrize("mistakes", MANY_MISTAKES)
def test_many_or_long_mistakes_are_told_in_a_few_words(tiny, mistakes):
    path, body = MANY_MISTAKES[mistakes]
    started = time.monotonic()
    response = post(tiny.url, body, path)
    assert response.status_code in (400, 404)
    assert len(error_of(response)["message"]) < 3000
    assert len(response.text) < 5000
    assert time.monotonic() - started < 3  # and no other answer goes on meanwhile


@pytest.mark.parametrize("body", BODIES)
def test_a_body_that_is_no_request_is_a_400(tiny, body):
    response = httpx2.post(tiny.url + CHAT, content=BODIES[body], headers=JSON)
    assert response.status_code == 400, response.text
    assert error_of(response)["message"]


def test_a_body_of_ten_megabytes_is_refused_however_it_is_sent(tiny):
    body = json.dumps({"messages": [{"role": "user", "content": "a" * 10_000_000}]}).encode()
    chunks = (body[i : i + 100_000] for i in range(0, len(body), 100_000))
    for content in (body, chunks):
        response = httpx2.post(tiny.url + CHAT, content=content, headers=JSON, timeout=30)
        assert response.status_code == 413
        assert error_of(response)["type"] == "invalid_request_error"


def test_openai_raises_its_own_errors(tiny, client):
    def ask(**fields):
        return client.chat.completions.create(**{"model": MODEL, "messages": HELLO, **fields})

    with pytest.raises(openai.NotFoundError, match="is not served here"):
        ask(model="gpt-4")
    with pytest.raises(openai.BadRequestError) as caught:
        ask(extra_body={"max_thinking_tokens": -5})
    assert caught.value.param == "max_thinking_tokens"
    assert post(tiny.url, {}, "/v1/embeddings").status_code == 404
    assert httpx2.get(tiny.url + CHAT).status_code == 405


def test_the_key_is_asked_for_where_something_is_served():
    with serving(tiny_engine(), api_key="secret") as running:
        for path in ("/", "/health", "/metrics", "/page/chat.js"):
            assert httpx2.get(running.url + path).status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            refused = httpx2.get(running.url + "/v1/models", headers=headers)
            assert refused.status_code == 401
            assert error_of(refused)["code"] == "invalid_api_key"
            assert post(running.url, {}, "/tokenize", headers=headers).status_code == 401
        client = openai.OpenAI(base_url=running.url + "/v1", api_key="secret")
        assert client.models.list().data[0].id == MODEL
        client.close()
