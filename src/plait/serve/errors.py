"""Errors as clients of OpenAI's API read them: `{"error": {"message", "type", "param", "code"}}`.

A client's mistake is never a 500. Answers are written in ASCII, for what a message quotes may be
half of a surrogate pair, which UTF-8 cannot carry.
"""

import json
import re
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from plait.core.config import describe_problem
from plait.core.errors import PlaitError, RequestError
from plait.serve.worker import BusyError, ServerError

RETRY_AFTER_S = 1
_TOLD_PROBLEMS = 5
"""Mistakes of one body that are described; a body of megabytes can hold as many as it likes."""

_FIELD = re.compile(r"(?:messages\[\d+\]: )?([a-z][\w.]*) = ")


class UnknownModelError(RequestError):
    """The request names a model that this server does not serve."""


class _Kind(NamedTuple):
    status: int
    type: str
    code: str | None = None


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a value as JSON."""
    return Response(json.dumps(value), status, headers, media_type="application/json")


def error_body(error: Exception) -> dict[str, Any]:
    """Return the JSON of an error, as it also goes into a stream."""
    field = _FIELD.match(str(error))
    return _body(_kind(error), str(error), field[1] if field else None)


def error_response(error: Exception) -> Response:
    """Return the answer to a request that failed."""
    headers = {"Retry-After": str(RETRY_AFTER_S)} if isinstance(error, BusyError) else None
    return json_response(error_body(error), _kind(error).status, headers)


def plain_error(status: int, message: str, kind: str, code: str | None = None) -> Response:
    """Return an error that is no exception."""
    return json_response(_body(_Kind(status, kind, code), message, None), status)


def install_handlers(app: FastAPI) -> None:
    """Make every error of the app answer in this form."""

    @app.exception_handler(PlaitError)
    async def of_plait(request: Request, error: PlaitError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def of_body(request: Request, error: RequestValidationError) -> Response:
        details = error.errors()
        problems = [_problem(request, detail) for detail in details[:_TOLD_PROBLEMS]]
        if len(details) > _TOLD_PROBLEMS:
            problems.append(f"and {len(details) - _TOLD_PROBLEMS} more problems")
        path = details[0]["loc"][1:]
        in_json = details[0]["type"] != "json_invalid"  # else the path is a place in the text
        param = ".".join(map(str, path)) if path and in_json else None
        message = "; ".join(dict.fromkeys(problems))
        return json_response(_body(_kind(RequestError()), message, param), 400)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        messages = {
            404: f"no such path: {request.url.path}",
            405: f"{request.method} is not allowed on {request.url.path}",
        }
        message = messages.get(error.status_code, str(error.detail))
        body = _body(_Kind(error.status_code, "invalid_request_error"), message, None)
        return json_response(body, error.status_code, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def of_anything(request: Request, error: Exception) -> Response:
        message = f"the server failed: {type(error).__name__}"
        return json_response(_body(_Kind(500, "server_error"), message, None), 500)


def _kind(error: Exception) -> _Kind:
    if isinstance(error, BusyError):
        return _Kind(429, "rate_limit_error", "queue_full")
    if isinstance(error, UnknownModelError):
        return _Kind(404, "invalid_request_error", "model_not_found")
    if isinstance(error, PlaitError) and not isinstance(error, ServerError):
        return _Kind(400, "invalid_request_error")
    return _Kind(500, "server_error")


def _body(kind: _Kind, message: str, param: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind.type, "param": param, "code": kind.code}}


def _problem(request: Request, detail: Any) -> str:
    if detail["type"] == "json_invalid":
        return (
            f"the body is not valid JSON: {detail['ctx']['error']} at character {detail['loc'][1]}"
        )
    if len(detail["loc"]) < 2:
        return "the body must be a JSON object, sent with Content-Type: application/json"
    route = request.scope.get("route")
    field = route.body_field if isinstance(route, APIRoute) else None
    model = field.field_info.annotation if field else None
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return detail["msg"]
    return describe_problem(model, detail | {"loc": detail["loc"][1:]})
