"""An endpoint on loopback that answers as a test tells it to: in time, late, wrongly or not at all.

Plain asyncio, so that it can be told to break its connections, and costs little beside a client
that is being measured.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

Body = dict[str, Any]
Script = Callable[[Body], Any]

# What a script may return besides a text: a status with a body and headers, or a way to misbehave.
CLOSE = object()
HANG = object()


class Status(NamedTuple):
    code: int
    text: str = "{}"
    headers: str = ""


class Endpoint:
    """A server; `calls` holds the bodies of all requests in the order in which they came."""

    def __init__(self, script: Script, latency_s: float = 0.0) -> None:
        self.script, self.latency_s = script, latency_s
        self.calls: list[Body] = []
        self.in_flight = self.most_in_flight = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                body = json.loads(await reader.readexactly(length))
                self.calls.append(body)
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    if not await self.answer(body, writer):
                        return
                finally:
                    self.in_flight -= 1
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, body: Body, writer: asyncio.StreamWriter) -> bool:
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        said = self.script(body)
        if said is CLOSE:
            return False
        if said is HANG:
            await asyncio.sleep(3600)
        if isinstance(said, str):
            said = completion(said)
        if not isinstance(said, Status):
            said = Status(200, json.dumps(said))
        content = said.text.encode()
        head = f"HTTP/1.1 {said.code} X\r\nContent-Length: {len(content)}\r\n{said.headers}\r\n"
        writer.write(head.encode() + content)
        await writer.drain()
        return True


def completion(text: str, finish_reason: str = "stop", **message: Any) -> Body:
    message = {"role": "assistant", "content": text, **message}
    usage = {"prompt_tokens": 10, "completion_tokens": len(text) // 4 + 1}
    return {"choices": [{"message": message, "finish_reason": finish_reason}], "usage": usage}


def asked(body: Body) -> str:
    """Return the last message of a request."""
    return body["messages"][-1]["content"]


@contextmanager
def scripted(script: Script, latency_s: float = 0.0) -> Iterator[Endpoint]:
    """Run an endpoint in a thread."""
    endpoint = Endpoint(script, latency_s)
    started = threading.Event()
    stop: list[Callable[[], None]] = []

    async def run() -> None:
        server = await asyncio.start_server(endpoint.serve, "127.0.0.1", 0, backlog=256)
        endpoint.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(ended.set))
        started.set()
        await ended.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(10)
    try:
        yield endpoint
    finally:
        stop[0]()
        thread.join(10)
