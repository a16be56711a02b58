"""What HTTP costs: the server beside its own engine, and many streams for a long time.

    streams    tokens/s of 16 streamed completions over HTTP, beside the same requests handed to the
               engine in process; the clients are a process of their own
    soak       64 clients without pause: memory, stuck slots, time between two tokens

Medians of rounds; a ratio is the median of the rounds' ratios. Targets: streams >= 0.9x, memory
flat, nothing stuck.

    .venv/bin/python bench/serve_http.py [--quick] [--rounds N] [--soak SECONDS] [--out FILE]
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from train_cpu import LARGE, QUICK, build, facts

from plait.data.train_tokenizer import train_tokenizer
from plait.engine.engine import Engine
from plait.engine.request import SamplingParams
from plait.model.lm import HybridLM
from plait.serve.api import ServeSettings, build_app
from plait.serve.run import Server, listen
from plait.serve.worker import Worker

SHAPE = LARGE | {"mamba_head_dim": 80}
NUM_STREAMS, PROMPT_TOKENS, OUTPUT_TOKENS = 16, 64, 64
SOAK_CLIENTS = 64


class Serving(NamedTuple):
    """A server on a thread of this process."""

    url: str
    worker: Worker


def make_engine(model: HybridLM, rows: int) -> Engine:
    """Return an engine whose tokenizer uses the first ids of the model's vocabulary."""
    tokenizer = train_tokenizer(["hello User Assistant"] * 3, vocab_size=280)
    return Engine(model, tokenizer, max_num_seqs=rows, max_context=1024)


@contextmanager
def serving(engine: Engine) -> Iterator[Serving]:
    """Serve an engine on a free port."""
    app = build_app(engine, ServeSettings(model_name="bench"))
    ready = threading.Event()
    server, listener = Server(app, ready.set), listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    ready.wait()
    try:
        yield Serving(f"http://127.0.0.1:{listener.getsockname()[1]}", app.state.worker)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def prompts(count: int, seed: int) -> list[list[int]]:
    """Return random prompts."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(20, 270, (count, PROMPT_TOKENS), generator=generator).tolist()


# ---- the clients' process ----


async def stream(
    client: Any, url: str, prompt: list[int], max_tokens: int, read: int
) -> list[float]:
    """Stream one completion, at most `read` chunks of it; return when each chunk came."""
    body = {"prompt": prompt, "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
    came = []
    async with client.stream("POST", f"{url}/v1/completions", json=body, timeout=600) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                assert '"error"' not in line[:20], line
                came.append(time.monotonic())
                if len(came) == read:
                    break
    return came


async def clients(url: str, seconds: float, count: int) -> dict[str, Any]:
    """Send one request per client, or with `seconds` one after the other for that long."""
    import httpx2

    waits: list[float] = []
    num_chunks = num_requests = num_left = 0
    started = time.monotonic()
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(limits=limits) as client:

        async def one(number: int) -> None:
            nonlocal num_chunks, num_requests, num_left
            turn = 0
            while turn == 0 or time.monotonic() - started < seconds:
                [prompt] = prompts(1, number + 1000 * turn)
                length = OUTPUT_TOKENS if not seconds else 16 + (number * 7 + turn * 13) % 100
                leaves = bool(seconds) and (number + turn) % 10 == 0
                came = await stream(client, url, prompt, length, length // 2 if leaves else -1)
                waits.extend(b - a for a, b in itertools.pairwise(came))
                num_chunks, num_requests = num_chunks + len(came), num_requests + 1
                num_left += leaves
                turn += 1

        await asyncio.gather(*(one(number) for number in range(count)))
    waits.sort()
    return {
        "seconds": time.monotonic() - started,
        "chunks": num_chunks,
        "requests": num_requests,
        "left": num_left,
        "p50": waits[len(waits) // 2],
        "p99": waits[int(len(waits) * 0.99)],
    }


def start_clients(url: str, seconds: float, count: int) -> subprocess.Popen:
    """Start the clients in a process of their own."""
    command = [sys.executable, __file__, "--clients", url, str(seconds), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen) -> dict[str, Any]:
    """Return what the clients measured."""
    output, _ = process.communicate()
    assert process.returncode == 0, "the clients failed"
    return json.loads(output)


# ---- rows ----


def stream_row(model: HybridLM, rounds: int) -> str:
    """Compare tokens/s over HTTP with tokens/s in process."""
    direct = make_engine(model, NUM_STREAMS)
    params = SamplingParams(max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    num_tokens = NUM_STREAMS * OUTPUT_TOKENS
    rates: tuple[list[float], list[float]] = ([], [])
    with serving(make_engine(model, NUM_STREAMS)) as server:
        for number in range(rounds + 1):
            over_http = result_of(start_clients(server.url, 0, NUM_STREAMS))["seconds"]
            started = time.perf_counter()
            direct.generate(prompts(NUM_STREAMS, 5000 + number), params)
            in_process = time.perf_counter() - started
            if number:  # the first round warms up
                rates[0].append(num_tokens / over_http)
                rates[1].append(num_tokens / in_process)
    ratios = sorted(a / b for a, b in zip(*rates, strict=True))
    http, engine = (statistics.median(side) for side in rates)
    return (
        f"| {NUM_STREAMS} streams, {model.spec.num_parameters / 1e6:.0f}M | {http:,.0f} tokens/s "
        f"over HTTP, engine {engine:,.0f} "
        f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f}) |"
    )


def soak_row(model: HybridLM, seconds: float) -> str:
    """Let many clients come and go, every tenth leaving half-way, and look at what stays behind."""
    with serving(make_engine(model, SOAK_CLIENTS)) as server:
        result_of(start_clients(server.url, seconds / 20, SOAK_CLIENTS))
        sizes = []
        process = start_clients(server.url, seconds, SOAK_CLIENTS)
        while process.poll() is None:
            sizes.append(resident_mib())
            time.sleep(seconds / 100)
        got = result_of(process)
        deadline = time.monotonic() + 10
        while server.worker.num_open and time.monotonic() < deadline:
            time.sleep(0.05)
        stuck, running = server.worker.num_open, server.worker.stats.num_running
    early, late = (statistics.median(part) for part in (sizes[5:25], sizes[-20:]))
    return (
        f"| soak, {SOAK_CLIENTS} clients, {got['seconds']:.0f} s, "
        f"{model.spec.num_parameters / 1e6:.0f}M | {got['requests']:,} requests ({got['left']:,} "
        f"left half-way), {got['chunks'] / got['seconds']:,.0f} tokens/s; between tokens p50 "
        f"{got['p50'] * 1e3:.0f} ms, p99 {got['p99'] * 1e3:.0f} ms; stuck: {stuck}, {running} "
        f"| memory {early:,.0f} -> {late:,.0f} MiB |"
    )


def resident_mib() -> float:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--soak", type=float, default=300, help="seconds; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clients", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    options = parser.parse_args()
    if options.clients:
        url, seconds, count = options.clients
        print(json.dumps(asyncio.run(clients(url, float(seconds), int(count)))))
        return
    torch.set_num_threads(options.threads)
    model = (
        build(QUICK.prefill | {"vocab_size": 512} if options.quick else SHAPE)
        .to(torch.bfloat16)
        .eval()
    )
    lines = [*(f"- {fact}" for fact in facts(options)), "", "| what | figures | ratio |"]
    lines += ["|---|---|---|", stream_row(model, options.rounds)]
    if options.soak:
        lines.append(soak_row(model, options.soak))
    report = "\n".join(["# The server on a processor", "", *lines, ""])
    print(report)
    if options.out is not None:
        options.out.write_text(report)


if __name__ == "__main__":
    main()
