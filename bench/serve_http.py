"""What HTTP costs: `plait serve` beside its engine in process, and many streams for a long time.

    streams    tokens/s of 16 streamed completions over HTTP, beside the same requests handed to an
               engine in this process
    soak       64 clients without pause, every tenth leaving half-way: memory of the server minute
               by minute, what is stuck at the end, time between two tokens

Server, clients and engine are processes of their own; only one of engine and server works at a
time. Clients share the server's processors here, which real ones do not, so they read with plain
asyncio streams: a whole HTTP client takes twice as long for a chunk as the server does. Medians of
rounds; a ratio is the median of the rounds' ratios. Targets: streams >= 0.9x, memory flat, nothing
stuck.

    .venv/bin/python bench/serve_http.py [--quick] [--rounds N] [--soak SECONDS] [--out FILE]
"""

# ruff: noqa: E402
import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from plait.core.process import set_library_defaults

set_library_defaults()  # the engine here waits as the server's does; OpenMP reads it with torch

import torch
from train_cpu import LARGE, QUICK, build, facts

from plait.data.train_tokenizer import train_tokenizer
from plait.engine.engine import Engine
from plait.engine.request import SamplingParams
from plait.model.hf import save
from plait.model.lm import HybridLM

SHAPE = LARGE | {"mamba_head_dim": 80}
NUM_STREAMS, PROMPT_TOKENS, OUTPUT_TOKENS = 16, 64, 64
SOAK_CLIENTS = 64
CONTEXT = 1024


class Serving(NamedTuple):
    """A `plait serve` of its own process."""

    url: str
    process: subprocess.Popen

    def resident_mib(self) -> float:
        """Return the resident memory of the server."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def num_busy(self) -> int:
        """Return the requests that run or wait."""
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        names = ("plait_num_requests_running ", "plait_num_requests_waiting ")
        return sum(int(float(line.split()[1])) for line in lines if line.startswith(names))


@contextmanager
def serving(directory: Path, rows: int) -> Iterator[Serving]:
    """Serve a model on a free port."""
    plait = str(Path(sys.executable).with_name("plait"))
    command = [plait, "serve", str(directory), "--port", "0", "--context", str(CONTEXT)]
    command += ["--max-num-seqs", str(rows)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url = next(line.split()[-1] for line in process.stdout if "chat page" in line)
        yield Serving(url.rstrip("/"), process)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def write_model(model: HybridLM, directory: Path) -> None:
    """Write a model with a tokenizer that uses the first ids of its vocabulary."""
    save(model, directory)
    train_tokenizer(["hello User Assistant"] * 3, vocab_size=280).save(directory)


def prompts(count: int, seed: int) -> list[list[int]]:
    """Return random prompts."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(20, 270, (count, PROMPT_TOKENS), generator=generator).tolist()


# ---- the clients' process ----


async def stream(url: str, prompt: list[int], max_tokens: int, read: int) -> list[float]:
    """Stream one completion, at most `read` chunks of it; return when each chunk came."""
    body = {"prompt": prompt, "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
    came = []
    reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
    try:
        writer.write(request("/v1/completions", json.dumps(body).encode()))
        status = await reader.readline()
        assert b" 200 " in status, status + await reader.read()
        async for line in reader:
            if line.startswith(b"data: {"):
                assert b'"error"' not in line[:20], line
                came.append(time.monotonic())
            if len(came) == read or line.startswith(b"data: [DONE]"):
                return came
    finally:
        writer.close()
    raise ConnectionError("the stream broke off")


def request(path: str, body: bytes) -> bytes:
    """Return the bytes of a POST."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def clients(url: str, seconds: float, count: int) -> dict[str, Any]:
    """Send one request per client, or with `seconds` one after the other for that long."""
    waits: list[float] = []
    num_chunks = num_requests = num_left = 0
    started = time.monotonic()

    async def one(number: int) -> None:
        nonlocal num_chunks, num_requests, num_left
        turn = 0
        while turn == 0 or time.monotonic() - started < seconds:
            [prompt] = prompts(1, number + 1000 * turn)
            length = OUTPUT_TOKENS
            if seconds:  # every length, since a product is compiled for each
                prompt = prompt[(number * 5 + turn * 11) % 60 :]
                length = 16 + (number * 7 + turn * 13) % 100
            leaves = bool(seconds) and (number + turn) % 10 == 0
            came = await stream(url, prompt, length, length // 2 if leaves else -1)
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


def stream_row(directory: Path, rounds: int) -> str:
    """Compare tokens/s over HTTP with tokens/s in process."""
    direct = Engine.from_path(directory, max_num_seqs=NUM_STREAMS, max_context=CONTEXT)
    params = SamplingParams(max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    num_tokens = NUM_STREAMS * OUTPUT_TOKENS
    rates: tuple[list[float], list[float]] = ([], [])
    with serving(directory, NUM_STREAMS) as server:
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
        f"| {NUM_STREAMS} streams, {direct.model.spec.num_parameters / 1e6:.0f}M "
        f"| {http:,.0f} tokens/s over HTTP, engine {engine:,.0f} "
        f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f}) |"
    )


class Soak(NamedTuple):
    """What many clients left behind."""

    clients: dict[str, Any]
    num_stuck: int
    """Requests that still run or wait when every client is gone."""
    memory_mib: list[float]
    """Of the server, in each fifth of the time; in the first it takes its pools."""

    @property
    def growth(self) -> float:
        """Memory of the last fifth, in those of the second."""
        return self.memory_mib[-1] / self.memory_mib[1]


def soak(directory: Path, seconds: float) -> Soak:
    """Let many clients come and go."""
    with serving(directory, SOAK_CLIENTS) as server:
        sizes, stop = [], time.monotonic() + seconds
        process = start_clients(server.url, seconds, SOAK_CLIENTS)
        while process.poll() is None:
            if time.monotonic() < stop:
                sizes.append(server.resident_mib())
            time.sleep(seconds / 100)
        got = result_of(process)
        deadline = time.monotonic() + 10
        while server.num_busy() and time.monotonic() < deadline:
            time.sleep(0.05)
        fifth = len(sizes) // 5
        fifths = [statistics.median(sizes[i * fifth : (i + 1) * fifth]) for i in range(5)]
        return Soak(got, server.num_busy(), fifths)


def soak_row(directory: Path, seconds: float) -> str:
    """Return the line of the table for a soak."""
    result = soak(directory, seconds)
    got = result.clients
    return (
        f"| soak, {SOAK_CLIENTS} clients, {got['seconds']:.0f} s | {got['requests']:,} requests "
        f"({got['left']:,} left half-way), {got['chunks'] / got['seconds']:,.0f} tokens/s; between "
        f"tokens p50 {got['p50'] * 1e3:.0f} ms, p99 {got['p99'] * 1e3:.0f} ms; stuck: "
        f"{result.num_stuck}; MiB in each fifth of the time: "
        f"{', '.join(f'{size:,.0f}' for size in result.memory_mib)} "
        f"| memory {result.growth:.3f}, last fifth to second |"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--rounds", type=int, default=5, help="0 leaves the streams out")
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
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # the server's
    fields = QUICK.prefill | {"vocab_size": 512} if options.quick else SHAPE
    lines = [*(f"- {fact}" for fact in facts(options)), "", "| what | figures | ratio |"]
    lines.append("|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "model"
        write_model(build(fields).to(torch.bfloat16), directory)
        if options.rounds:
            lines.append(stream_row(directory, options.rounds))
        if options.soak:
            lines.append(soak_row(directory, options.soak))
    report = "\n".join(["# The server on a processor", "", *lines, ""])
    print(report)
    if options.out is not None:
        options.out.write_text(report)


if __name__ == "__main__":
    main()
