"""The HTTP server: one engine behind OpenAI's, vLLM's and NIM's paths, and the chat page.

POST /v1/chat/completions, /v1/completions      answers, streamed or not
GET  /v1/models   POST /tokenize, /detokenize   what is served, and its tokens
GET  /health, /v1/health/live, /v1/health/ready, /version, /metrics
GET  /                                          the chat page
"""

import asyncio
import hmac
import importlib.metadata
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plait.core.config import Settings, shortened
from plait.core.errors import RequestError
from plait.engine.engine import Engine
from plait.engine.vocabulary import check_ids
from plait.serve.chat import ChatAnswer, chat_ask
from plait.serve.completions import CompletionAnswer, completion_asks
from plait.serve.errors import UnknownModelError, install_handlers, json_response, plain_error
from plait.serve.logprobs import TokenNames
from plait.serve.messages import template_messages, template_tools
from plait.serve.metrics import Metrics
from plait.serve.schema import (
    ChatRequest,
    ChatTemplateOptions,
    CompletionRequest,
    DetokenizeRequest,
    Sampling,
    TokenizeRequest,
)
from plait.serve.stream import EventStream, unless_gone
from plait.serve.worker import Answers, Ask, Worker

PAGE = Path(__file__).with_name("page")

_OPEN_PATHS = ("/v1/health/live", "/v1/health/ready")
_PROTECTED = ("/v1/", "/tokenize", "/detokenize")


class ServeSettings(Settings):
    """How to serve one engine."""

    model_name: str
    """What clients call the model."""
    max_waiting: int = 256
    """Requests that may wait beside those that run; more get a 429."""
    max_body_bytes: int = 8 * 1024 * 1024
    """Longest request body; longer ones get a 413."""
    api_key: str | None = None
    """What clients must send as `Authorization: Bearer KEY`; None asks for none."""


def build_app(engine: Engine, settings: ServeSettings) -> FastAPI:
    """Return the server for an engine; its worker lives as long as the app."""
    # The metrics read the worker's numbers and the worker notes latencies, so one of them is late.
    metrics = Metrics(lambda: worker.stats)
    worker = Worker(engine, metrics, max_waiting=settings.max_waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await worker.close()

    app = FastAPI(
        title="plait",
        version=importlib.metadata.version("plait"),
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from the internet
        redoc_url=None,
    )
    app.state.worker = worker
    install_handlers(app)
    app.include_router(_generation_routes(worker, settings.model_name))
    app.include_router(_token_routes(engine, settings.model_name))
    app.include_router(_state_routes(worker, metrics))
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.add_middleware(_Guard, settings=settings)
    return app


def _generation_routes(worker: Worker, model_name: str) -> APIRouter:
    router = APIRouter()
    tokenizer = worker.engine.tokenizer
    names = TokenNames(tokenizer)

    @router.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        _check(body, model_name)
        # In a thread: a long prompt takes seconds, in which the other answers go on.
        ask = await asyncio.to_thread(chat_ask, body, tokenizer)
        answer = ChatAnswer(body, model_name, names)
        return await respond(request, [ask], answer, streams=bool(body.stream))

    @router.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Continue texts."""
        _check(body, model_name)
        asks = await asyncio.to_thread(completion_asks, body, tokenizer)
        answer = CompletionAnswer(body, model_name, names, tokenizer)
        return await respond(request, asks, answer, streams=bool(body.stream))

    async def respond(
        request: Request,
        asks: list[Ask],
        answer: ChatAnswer | CompletionAnswer,
        *,
        streams: bool,
    ) -> Response:
        # All of a request have one form; in a thread for the same reason as prompts.
        if grammar := asks[0].params[0].grammar:
            await asyncio.to_thread(worker.engine.compile, grammar)
        if streams:
            answers = await worker.submit(asks, streams=True)
            return EventStream(answer.chunks(answers), answers)

        async def whole() -> Response:
            answers: Answers = await worker.submit(asks, streams=False)
            try:
                return json_response(await answer.whole(answers))
            finally:
                answers.release()

        return await unless_gone(request, whole())

    return router


def _token_routes(engine: Engine, model_name: str) -> APIRouter:
    router = APIRouter()
    names = TokenNames(engine.tokenizer)
    started = int(time.time())

    @router.get("/v1/models")
    async def models() -> Response:
        """Say what is served."""
        model = {
            "id": model_name,
            "object": "model",
            "created": started,
            "owned_by": "plait",
            "max_model_len": engine.max_context,
        }
        return json_response({"object": "list", "data": [model]})

    @router.post("/tokenize")
    def tokenize(body: TokenizeRequest) -> Response:
        """Return the tokens of a text, or of a conversation with its template."""
        _check_model(body.model, model_name)
        tokens = _encode(engine, body)
        answer: dict[str, Any] = {
            "tokens": tokens,
            "count": len(tokens),
            "max_model_len": engine.max_context,
        }
        if body.return_token_strs:
            answer["token_strs"] = [names.name(token) for token in tokens]
        return json_response(answer)

    @router.post("/detokenize")
    def detokenize(body: DetokenizeRequest) -> Response:
        """Return the text of tokens."""
        _check_model(body.model, model_name)
        check_ids("tokens", body.tokens, len(engine.tokenizer.token_bytes))
        return json_response({"prompt": engine.tokenizer.decode(body.tokens)})

    return router


def _state_routes(worker: Worker, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.get("/")
    async def page() -> Response:
        """Return the chat page."""
        return FileResponse(PAGE / "index.html")

    @router.get("/v1/health/live")
    async def live() -> Response:
        """Say that the process answers."""
        return json_response({"status": "ok"})

    @router.get("/health")
    @router.get("/v1/health/ready")
    async def ready() -> Response:
        """Say whether requests are served."""
        if worker.is_alive:
            return json_response({"status": "ok"})
        return plain_error(503, "the engine has stopped", "server_error")

    @router.get("/version")
    async def version() -> Response:
        """Return plait's version."""
        return json_response({"version": importlib.metadata.version("plait")})

    @router.get("/metrics")
    async def read_metrics() -> Response:
        """Return Prometheus metrics."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _check(body: Sampling, model_name: str) -> None:
    _check_model(body.model, model_name)
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options needs stream = true")


def _check_model(name: str | None, served: str) -> None:
    if name not in (None, "", served):
        raise UnknownModelError(f"model = {shortened(name)} is not served here; {served!r} is")


def _encode(engine: Engine, body: TokenizeRequest) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("send either prompt or messages")
    if body.messages is None:
        return engine.encode(body.prompt or "")
    options = body.chat_template_kwargs or ChatTemplateOptions()
    return engine.tokenizer.encode_conversation(
        template_messages(body.messages),
        tools=template_tools(body.tools or []),
        add_generation_prompt=body.add_generation_prompt,
        enable_thinking=options.enable_thinking,
        continue_final_message=body.continue_final_message,
    )


class _Guard:
    """Refuses what has no key or is too long, before it is read."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        self._max_body_bytes = settings.max_body_bytes
        self._wanted = f"Bearer {settings.api_key}".encode() if settings.api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, self._counted(receive), send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        sent = headers.get(b"authorization", b"")
        wanted = self._wanted if _asks_for_key(scope["path"]) else None
        if wanted is not None and not hmac.compare_digest(sent, wanted):
            message = "the API key is missing or wrong: send `Authorization: Bearer KEY`"
            refusal = plain_error(401, message, "authentication_error", "invalid_api_key")
            refusal.headers["WWW-Authenticate"] = "Bearer"
            return refusal
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            return plain_error(413, self._too_long, "invalid_request_error")
        return None

    @property
    def _too_long(self) -> str:
        return f"the body is too long; allowed: {self._max_body_bytes} bytes"

    def _counted(self, receive: Receive) -> Receive:
        """Cut off a body that did not say how long it is."""
        num_bytes = 0

        async def receive_counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise HTTPException(413, self._too_long)
            return message

        return receive_counted


def _asks_for_key(path: str) -> bool:
    return path.startswith(_PROTECTED) and path not in _OPEN_PATHS
