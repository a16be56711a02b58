"""What the synth client costs: a generator's calls beside the endpoint's own throughput.

Three endpoints, each a process of its own that answers passages with rewritten ones:

    latency     each answer takes a log-normal time of 0.5 s in the mean, however many wait: a fleet
                with room to spare. Whoever keeps N calls in flight gets N / 0.5 answers a second
    saturated   16 answers at a time, 0.05 s each in the mean, the rest queue: a full fleet, 320
                answers a second
    instant     no wait: what the client itself can do

"Own" is what 64 bare connections get that send the same bodies, encoded beforehand, one after the
other: no JSON, no store, no checks. "Client" is the whole stage: `rephrase` from documents to files
with every reply kept in SQLite. They take turns; a ratio is the median of the rounds' ratios.
Target: >= 0.95 at 64 in flight for the first two; the third says where the client would end.

    .venv/bin/python bench/synth.py [--quick] [--rounds N] [--out FILE]
"""

import argparse
import asyncio
import json
import math
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from train_cpu import facts

from plait.synth.chunks import estimate_tokens
from plait.synth.settings import Sources
from plait.synth.stage import AnySynthSettings, write

IN_FLIGHT = 64
SENTENCE = "The sum of two even numbers is even because each of them is twice a whole number. "
PASSAGE = SENTENCE * 22  # about 1,800 bytes, 450 tokens


class Kind(NamedTuple):
    """How an endpoint answers."""

    mean_s: float
    slots: int
    """Answers that are written at once; the others wait for their turn."""
    num_calls: int


KINDS = {
    "latency": Kind(0.5, 100_000, 2_000),
    "saturated": Kind(0.05, 16, 4_000),
    "instant": Kind(0.0, 100_000, 4_000),
}
SPREAD = 0.6  # of the logarithm of an answer's time


class _Connection(asyncio.Protocol):
    """One connection of the endpoint: whole requests in, answers out when their time has come."""

    def __init__(self, slots: asyncio.Semaphore, mean_s: float, dice: random.Random) -> None:
        self.slots, self.mean_s, self.dice = slots, mean_s, dice
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        if (request := _whole(self.received)) is not None:
            self.received = b""
            asyncio.get_running_loop().create_task(self.answer(request))

    async def answer(self, _: bytes) -> None:
        if self.mean_s:
            async with self.slots:
                drawn = self.dice.lognormvariate(-SPREAD * SPREAD / 2, SPREAD)
                await asyncio.sleep(self.mean_s * drawn)
        self.transport.write(ANSWER)  # pyright: ignore[reportAttributeAccessIssue]


def _whole(received: bytes) -> bytes | None:
    """Return the body of a request or answer once all of it is there."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return None
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    return body if len(body) == length else None


def _answer() -> bytes:
    message = {"role": "assistant", "content": PASSAGE}
    usage = {"prompt_tokens": 550, "completion_tokens": 450}
    body = {"id": "x", "object": "chat.completion", "model": "m", "usage": usage}
    body["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


ANSWER = _answer()


def _serve(kind: Kind, address: multiprocessing.SimpleQueue) -> None:
    async def run() -> None:
        slots, dice = asyncio.Semaphore(kind.slots), random.Random(0)
        server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(slots, kind.mean_s, dice), "127.0.0.1", 0, backlog=512
        )
        address.put(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def endpoint(kind: Kind) -> Iterator[str]:
    """Run an endpoint in a process of its own and yield its address."""
    context = multiprocessing.get_context("spawn")
    address = context.SimpleQueue()
    process = context.Process(target=_serve, args=(kind, address))
    process.start()
    try:
        yield address.get()
    finally:
        process.kill()
        process.join()


class Rate(NamedTuple):
    """Answers a second, and processor time that an answer cost whoever asked."""

    per_s: float
    cpu_ms: float


def own(url: str, num_calls: int) -> Rate:
    """Return what bare connections get out of an endpoint."""
    parts = urlsplit(url)
    prompt = json.dumps({"model": "m", "messages": [{"role": "user", "content": PASSAGE}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(prompt)}"
    request = head.encode() + b"\r\n\r\n" + prompt
    left = num_calls

    class Asker(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.received = transport, b""
            self.done = asyncio.get_running_loop().create_future()
            self.ask()

        def ask(self) -> None:
            nonlocal left
            if left:
                left -= 1
                self.transport.write(request)  # pyright: ignore[reportAttributeAccessIssue]
            else:
                self.done.set_result(None)

        def data_received(self, data: bytes) -> None:
            self.received += data
            if _whole(self.received) is not None:
                self.received = b""
                self.ask()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        made = [loop.create_connection(Asker, parts.hostname, parts.port) for _ in range(IN_FLIGHT)]
        for transport, asker in await asyncio.gather(*made):
            await asker.done
            transport.close()

    return _timed(lambda: asyncio.run(run()), num_calls)


def client(url: str, num_calls: int) -> Rate:
    """Return what a stage that asks `num_calls` times gets out of an endpoint."""
    with tempfile.TemporaryDirectory() as folder:
        table = {"url": url, "model": "m", "max_in_flight": IN_FLIGHT}
        settings = AnySynthSettings.parse(
            {
                "generator": "rephrase",
                "style": "wikipedia",
                "category": "new",
                "endpoints": {"default": table},
            },
            "bench",
        )
        documents = ({"id": str(i), "text": f"{PASSAGE} {i}"} for i in range(num_calls))
        sources = Sources(
            documents=lambda: documents,
            num_documents=lambda: num_calls,
            num_tokens=estimate_tokens,
            language_of=lambda _: "en",
            parses=lambda *_: None,
            embed=lambda *_: None,
            cache=Path(folder) / "cache",
        )

        def run() -> None:
            metrics = write(settings, sources, Path(folder) / "out")
            assert metrics["documents"] == num_calls, metrics

        return _timed(run, num_calls)


def _timed(run, num_calls: int) -> Rate:
    started, cpu = time.perf_counter(), time.process_time()
    run()
    return Rate(
        num_calls / (time.perf_counter() - started),
        1000 * (time.process_time() - cpu) / num_calls,
    )


def measure(name: str, rounds: int, scale: float) -> str:
    """Return a row of the table."""
    kind = KINDS[name]
    num_calls = math.ceil(kind.num_calls * scale)
    bare, stage = [], []
    with endpoint(kind) as url:
        client(url, IN_FLIGHT)  # imports, connections
        for _ in range(rounds):
            bare.append(own(url, num_calls))
            stage.append(client(url, num_calls))
    ratios = [ours.per_s / theirs.per_s for ours, theirs in zip(stage, bare, strict=True)]
    rates = [statistics.median(rate.per_s for rate in found) for found in (bare, stage)]
    costs = [statistics.median(rate.cpu_ms for rate in found) for found in (bare, stage)]
    return (
        f"| {name} | {num_calls:,} | {rates[0]:,.0f} | {rates[1]:,.0f} | "
        f"{statistics.median(ratios):.3f} | {min(ratios):.3f} - {max(ratios):.3f} | "
        f"{costs[0]:.2f} / {costs[1]:.2f} |"
    )


def main() -> None:
    """Measure and print, or write, the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rounds, scale = (1, 0.1) if options.quick else (options.rounds, 1.0)
    lines = [
        f"# The synth client beside its endpoint, {IN_FLIGHT} in flight",
        "",
        *(f"- {fact}" for fact in facts(options)),
        "",
        "| endpoint | calls | own, answers/s | client, answers/s | ratio | spread | ms of CPU |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in KINDS:
        lines.append(measure(name, rounds, scale))
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    if options.out:
        options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
