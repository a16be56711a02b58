"""What goes wrong, and that the server lives: clients' mistakes, lost clients, failures inside."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import openai
import pytest

from plait.engine.engine import Engine
from plait.engine.request import SamplingParams
from plait.model.hf import save
from plait.serve.conftest import MODEL, serving, tiny_engine
from plait.serve.metrics import Metrics
from plait.serve.worker import Ask, Worker

HELLO = [{"role": "user", "content": "hello"}]
PLAIT = str(Path(sys.executable).with_name("plait"))
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
TOOL = {"type": "function", "function": {"name": "weather"}}
NEVER = {"type": "string", "minLength": 3, "maxLength": 1}


def eventually(holds: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def post(url: str, body: object, path: str = CHAT, **options) -> httpx2.Response:
    return httpx2.post(url + path, json=body, timeout=30, **options)


def error_of(response: httpx2.Response) -> dict:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


# ---- a client's mistakes ----


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
    "two forms": (CHAT, {"structured_outputs": {"regex": "a", "choice": ["b"]}}, "several forms"),
    "top_logprobs alone": (CHAT, {"top_logprobs": 2}, "logprobs"),
    "too many top_logprobs": (CHAT, {"logprobs": True, "top_logprobs": 200}, "top_logprobs"),
    "stream_options alone": (CHAT, {"stream_options": {"include_usage": True}}, "stream"),
    "bad bias": (CHAT, {"logit_bias": {"many": 1}}, "logit_bias"),
    "bias of an unknown token": (CHAT, {"logit_bias": {"99999999": 1}}, "99999999"),
    "empty stop": (CHAT, {"stop": [""]}, "stop"),
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


# ---- lost clients and failures inside ----


LONG = {"messages": HELLO, "max_tokens": 1800, "ignore_eos": True}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_slot(tiny, stream):
    body = json.dumps({**LONG, "stream": stream}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    host, port = tiny.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert eventually(lambda: tiny.worker.stats.num_running == 1)
    assert eventually(lambda: tiny.worker.num_open == 0)
    assert eventually(lambda: not tiny.engine.has_work)


def test_the_connection_of_a_stream_is_not_used_again(tiny):
    """Browsers read on after an abort, to use a connection again; the slot would stay taken."""
    with httpx2.stream("POST", tiny.url + CHAT, json={**LONG, "stream": True}) as response:
        assert response.headers["Connection"] == "close"
    assert eventually(lambda: tiny.worker.num_open == 0)


def test_a_client_that_goes_as_its_request_is_taken_frees_its_slot(monkeypatch):
    """Cancelled between the moment a submission is answered and the moment its caller goes on."""
    engine = tiny_engine(max_num_seqs=1)
    worker = Worker(engine, Metrics(engine.stats), max_waiting=1)
    resolve = worker._resolve

    async def submit_and_go():
        worker.start()
        ask = Ask("hello", [SamplingParams(max_tokens=1800, ignore_eos=True)])
        submitting = asyncio.create_task(worker.submit([ask], streams=True))
        monkeypatch.setattr(
            worker, "_resolve", lambda *given: (resolve(*given), submitting.cancel())
        )
        with pytest.raises(asyncio.CancelledError):
            await submitting
        while worker.num_open:
            await asyncio.sleep(0.01)
        await worker.close()

    asyncio.run(asyncio.wait_for(submit_and_go(), 10))
    assert engine.stats().generated_tokens < 1800


def test_a_full_queue_is_a_429_that_says_when_to_come_back():
    with serving(tiny_engine(max_num_seqs=1), max_waiting=1) as running:
        with (
            httpx2.stream("POST", running.url + CHAT, json={**LONG, "stream": True}),
            httpx2.stream("POST", running.url + CHAT, json={**LONG, "stream": True}),
        ):
            refused = post(running.url, {"messages": HELLO})
            assert refused.status_code == 429
            assert refused.headers["Retry-After"] == "1"
            assert error_of(refused)["code"] == "queue_full"
            assert httpx2.get(running.url + "/health").status_code == 200
        many = post(running.url, {"messages": HELLO, "n": 3})
        assert (many.status_code, many.json()["error"]["code"]) == (400, None)
        assert eventually(lambda: running.worker.num_open == 0)
        assert post(running.url, {"messages": HELLO, "max_tokens": 2}).status_code == 200


def failing_on(engine: Engine, broken_id: int) -> Engine:
    """Make the requests whose prompt holds a token fail while they run."""
    submit = engine.submit

    def submit_broken(prompt, *args, **kwargs):
        handle = submit(prompt, *args, **kwargs)
        if broken_id in handle.prompt_ids:

            def fail(*args, **kwargs):
                raise ZeroDivisionError("a bug")

            handle.generation.accept = fail
        return handle

    engine.submit = submit_broken
    return engine


def test_a_failure_ends_one_request_and_the_others_go_on(caplog):
    engine = tiny_engine(max_num_seqs=4)
    [broken_id] = engine.tokenizer.encode("z")
    fields = {"max_tokens": 60, "ignore_eos": True, "temperature": 0}
    with serving(failing_on(engine, broken_id)) as running:
        want = post(running.url, {"prompt": "hello", **fields}, PLAIN).json()["choices"][0]["text"]
        with httpx2.stream(
            "POST", running.url + PLAIN, json={"prompt": "hello", "stream": True, **fields}
        ) as healthy:
            lines = healthy.iter_lines()
            got = json.loads(next(lines)[6:])["choices"][0]["text"]
            failed = post(running.url, {"prompt": "z", **fields}, PLAIN)
            assert failed.status_code == 500
            assert error_of(failed)["type"] == "server_error"
            for line in lines:
                if line.startswith("data: {"):
                    got += json.loads(line[6:])["choices"][0]["text"]
        assert got == want
        stream = post(running.url, {"prompt": "z", "stream": True, **fields}, PLAIN)
        assert json.loads(stream.text.split("data: ")[1])["error"]["type"] == "server_error"
        assert "[DONE]" not in stream.text
        assert eventually(lambda: running.worker.num_open == 0)


def test_a_step_that_fails_as_a_whole_ends_its_requests_and_not_the_server(caplog):
    engine = tiny_engine()
    step = engine.step

    def fail_once():
        engine.step = step
        raise MemoryError("no room")

    engine.step = fail_once
    with serving(engine) as running:
        assert post(running.url, {"messages": HELLO}).status_code == 500
        assert post(running.url, {"messages": HELLO, "max_tokens": 2}).status_code == 200
        assert httpx2.get(running.url + "/health").status_code == 200
    assert "a step of the engine failed" in caplog.text


# ---- the command ----


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    engine = tiny_engine()
    path = tmp_path_factory.mktemp("served") / "model"
    save(engine.model, path)
    engine.tokenizer.save(path)
    return path


def start(*arguments: str, **environment: str) -> tuple[subprocess.Popen, list[str]]:
    """Start `plait serve` on a free port; returns the process and what it said at first."""
    command = [PLAIT, "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    )
    said: list[str] = []
    for line in process.stdout or ():
        said.append(line)
        if "SIGTERM" in line:
            break
    return process, said


def test_the_command_answers_and_finishes_what_it_began_when_told_to_stop(directory, tmp_path):
    key = tmp_path / "key"
    key.write_text("secret\n")
    process, said = start(
        str(directory), "--memory", "1GiB", "--context", "1024", "--api-key-file", str(key)
    )
    try:
        assert "1,024 tokens" in "".join(said)
        [url] = [line.split()[-1] for line in said if "OpenAI API" in line]
        body = {**LONG, "max_tokens": 300, "stream": True}
        headers = {"Authorization": "Bearer secret"}
        with httpx2.stream(
            "POST", url + "/chat/completions", json=body, headers=headers, timeout=60
        ) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert json.loads(rest[-4][6:])["choices"][0]["finish_reason"] == "length"
        assert process.wait(20) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
