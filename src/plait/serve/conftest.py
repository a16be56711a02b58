"""A server with a tiny random model on a real socket."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2
import openai
import pytest

from plait.data.train_tokenizer import train_tokenizer
from plait.engine.engine import Engine
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.serve.api import ServeSettings, build_app
from plait.serve.run import Server, listen
from plait.serve.worker import Worker

MODEL = "tiny-random"
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


class Running(NamedTuple):
    url: str
    engine: Engine
    worker: Worker


def tiny_engine(**options) -> Engine:
    options = {"max_context": 2048, "memory_bytes": 2**30, **options}
    text = 'hello User Assistant <think>\nso\n</think>\n\n{"name": "a", "arguments": {}} <TOOLCALL>'
    tokenizer = train_tokenizer([text] * 3, vocab_size=300)
    spec = ModelSpec.preset("test").model_copy(update={"vocab_size": tokenizer.vocab_size})
    return Engine(init_weights(HybridLM(spec), seed=0), tokenizer, **options)


@contextmanager
def serving(engine: Engine, **settings) -> Iterator[Running]:
    app = build_app(engine, ServeSettings(model_name=MODEL, **settings))
    ready = threading.Event()
    server = Server(app, ready.set)
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        assert ready.wait(10)
        yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", engine, app.state.worker)
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


class Command(NamedTuple):
    url: str
    process: subprocess.Popen
    said: str


@contextmanager
def command(*arguments: str) -> Iterator[Command]:
    """Run `plait serve` on a free port until it listens."""
    plait = str(Path(sys.executable).with_name("plait"))
    process = subprocess.Popen(
        [plait, "serve", *arguments, "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        said = ""
        while "SIGTERM" not in said:
            line = process.stdout.readline()
            assert line, f"plait serve ended: {said}"
            said += line
        [url] = [line.split()[-1] for line in said.splitlines() if "chat page" in line]
        yield Command(url.rstrip("/"), process, said)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def post(url: str, body: object, path: str = CHAT, **options) -> httpx2.Response:
    return httpx2.post(url + path, json=body, timeout=30, **options)


def error_of(response: httpx2.Response) -> dict:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


# These do not yield: under jaxtyping's import hook pytest does not see a generator for what it is.


@pytest.fixture(scope="session")
def tiny(request: pytest.FixtureRequest) -> Running:
    stack = ExitStack()
    request.addfinalizer(stack.close)  # noqa: PT021
    return stack.enter_context(serving(tiny_engine(max_num_seqs=8)))


@pytest.fixture
def client(tiny: Running, request: pytest.FixtureRequest) -> openai.OpenAI:
    client = openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0)
    request.addfinalizer(client.close)  # noqa: PT021
    return client
