"""What goes wrong, and that the server lives: lost clients, failures inside, the command."""

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from plait.engine.engine import Engine
from plait.engine.grammar import GrammarCompiler
from plait.engine.request import SamplingParams
from plait.model.hf import save
from plait.serve.conftest import CHAT, HELLO, PLAIN, command, error_of, post, serving, tiny_engine
from plait.serve.metrics import Metrics
from plait.serve.worker import Ask, Worker


def eventually(holds: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


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
        ask = Ask([20, 21], [SamplingParams(max_tokens=1800, ignore_eos=True)])
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


def test_grammars_are_compiled_beside_the_steps(monkeypatch):
    threads = []
    compile_new = GrammarCompiler._compile_new

    def noted(self, kind, source):
        threads.append(threading.current_thread().name)
        return compile_new(self, kind, source)

    monkeypatch.setattr(GrammarCompiler, "_compile_new", noted)
    with serving(tiny_engine()) as running:
        form = {"structured_outputs": {"regex": "ab"}, "max_tokens": 9}
        answer = post(running.url, {"prompt": ["x", "y"], **form}, PLAIN).json()
    assert [choice["text"] for choice in answer["choices"]] == ["ab", "ab"]
    assert len(threads) == 1
    assert threads[0] != "plait-engine"


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


def test_an_engine_that_cannot_even_be_tidied_up_refuses_what_comes_next(caplog):
    """As after an illegal access to memory, when a GPU does nothing more for its process."""
    engine = tiny_engine()
    with serving(engine) as running:

        def broken(*_, **__):
            raise RuntimeError("an illegal memory access was encountered")

        engine.step = engine.cancel = broken
        assert post(running.url, {"messages": HELLO}).status_code == 500
        again = post(running.url, {"messages": HELLO})
        assert again.status_code == 500
        assert "the engine has stopped: an illegal memory access" in error_of(again)["message"]
        assert httpx2.get(running.url + "/health").status_code == 503
        assert running.worker.num_open == 0
    assert "restart the server" in caplog.text


def test_answers_go_on_while_a_long_prompt_becomes_tokens(monkeypatch):
    engine = tiny_engine()
    encode, may_go_on, is_busy = engine.tokenizer.encode, threading.Event(), threading.Event()

    def encode_slowly(text: str) -> list[int]:
        if "long" in text:
            is_busy.set()
            assert may_go_on.wait(20)
        return encode(text)

    monkeypatch.setattr(engine.tokenizer, "encode", encode_slowly)
    with serving(engine) as running, ThreadPoolExecutor() as pool:
        fields = {"max_tokens": 20, "ignore_eos": True}
        slow = pool.submit(post, running.url, {"prompt": "a long prompt", **fields}, PLAIN)
        assert is_busy.wait(20)
        assert post(running.url, {"prompt": "hello", **fields}, PLAIN).status_code == 200
        assert not slow.done()
        may_go_on.set()
        assert slow.result().status_code == 200


# ---- the command ----


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    engine = tiny_engine()
    path = tmp_path_factory.mktemp("served") / "model"
    save(engine.model, path)
    engine.tokenizer.save(path)
    return path


def test_the_command_answers_and_finishes_what_it_began_when_told_to_stop(directory, tmp_path):
    key = tmp_path / "key"
    key.write_text("secret\n")
    options = ["--memory", "1GiB", "--context", "1024", "--api-key-file", str(key)]
    with command(str(directory), *options) as (url, process, said):
        assert "1,024 tokens" in said
        body = {**LONG, "max_tokens": 300, "stream": True}
        headers = {"Authorization": "Bearer secret"}
        with httpx2.stream("POST", url + CHAT, json=body, headers=headers, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert json.loads(rest[-4][6:])["choices"][0]["finish_reason"] == "length"
        assert process.wait(20) in (0, -signal.SIGTERM)
