"""Server-sent events, written by hand: `data: {json}`, a blank line, and `[DONE]` at the end."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from fastapi import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from plait.core.errors import PlaitError
from plait.serve.errors import error_body
from plait.serve.worker import Answers

_CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody is there to read it


class EventStream(StreamingResponse):
    """Sends chunks as events and gives the answers back, however the stream ends."""

    def __init__(self, chunks: AsyncIterator[dict[str, Any]], answers: Answers) -> None:
        super().__init__(
            _events(chunks),
            media_type="text/event-stream",
            headers={
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                # A browser that could use the connection again goes on reading an aborted answer,
                # for up to 5 s, and the slot would stay taken for as long.
                "Connection": "close",
            },
        )
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the client has them all or is gone."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.release()


async def unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Return the result of `work`, which is cancelled if the client goes first."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=_CLIENT_CLOSED_REQUEST)
    finally:
        working.cancel()
        watching.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield _event(chunk)
        yield b"data: [DONE]\n\n"
    except PlaitError as error:
        yield _event(error_body(error))


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()
