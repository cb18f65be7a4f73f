"""From any failure to OpenAI's error object: four keys, the right status, never a stack."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fermi.errors import (
    DeadlineError,
    EngineDownError,
    EngineError,
    FermiError,
    ModelNotServedError,
    QueueFullError,
    RequestError,
)

RETRY_WHILE_DOWN_S = 2.0
#: Characters of a message or a field's name; what a client wrote may stand in them.
LONGEST_TEXT = 4096
#: By status, what Anthropic's API calls an error.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_TYPES = ("str", "int", "float", "bool", "dict")  # branches of unions, in pydantic's locations


class NotReadyError(FermiError):
    """The server loads its model, or drains."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AdminOnlyError(FermiError):
    """Only the holder of the admin key may do this."""


class RateLimitError(FermiError):
    """A client has used up what it may in a minute; ``retry_after`` is in seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoSuchResponseError(FermiError):
    """No response of that id is kept for the key that asks."""


class BodyTooLargeError(FermiError):
    """The body of a request is beyond the limit."""


class Failure(NamedTuple):
    """An error as the client sees it."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = {}

    @property
    def body(self) -> dict[str, Any]:
        """The envelope."""
        param = None if self.param is None else _cut(self.param)
        return {"error": {"message": _cut(self.message), "type": self.type, "param": param, "code": self.code}}

    def body_for(self, path: str) -> dict[str, Any]:
        """The envelope as clients of this path know it."""
        if not speaks_anthropic(path):
            return self.body
        kind = _ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": _cut(self.message)}}

    def response(self) -> Response:
        """The whole answer."""
        return _Answer(self)

    def event(self, path: str) -> bytes:
        """The last event of a stream that began well."""
        name = b"event: error\n" if speaks_anthropic(path) else b""
        return name + b"data: " + to_json(self.body_for(path)) + b"\n\n"


class _Answer(Response):
    """A failure, in the envelope of the path that it is sent to."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(to_json(failure.body), failure.status, dict(failure.headers), "application/json")
        self._failure = failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.body = to_json(self._failure.body_for(scope["path"]))
        self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def speaks_anthropic(path: str) -> bool:
    """Whether the clients of a path are Anthropic's."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def failure_of(error: BaseException) -> Failure:
    """What a client is told of an error; of one that nobody foresaw, only that it happened."""
    match error:
        case ModelNotServedError():
            return Failure(404, str(error), "invalid_request_error", error.param, error.code)
        case RequestError():
            return Failure(400, str(error), "invalid_request_error", error.param, error.code)
        case QueueFullError():
            return Failure(429, str(error), "rate_limit_error", None, "queue_full", _retry_after(error.retry_after))
        case RateLimitError():
            wait = _retry_after(error.retry_after)
            return Failure(429, str(error), "rate_limit_error", None, "rate_limit_exceeded", wait)
        case NotReadyError():
            return Failure(503, str(error), "service_unavailable", None, "not_ready", _retry_after(error.retry_after))
        case DeadlineError():
            return Failure(504, str(error), "timeout_error", None, "deadline_exceeded")
        case EngineDownError():
            return Failure(503, str(error), "service_unavailable", None, "not_ready", _retry_after(RETRY_WHILE_DOWN_S))
        case EngineError():
            return Failure(500, str(error), "server_error", None, "engine_error")
        case AdminOnlyError():
            return Failure(403, str(error), "permission_error", None, "admin_key_required")
        case NoSuchResponseError():
            return Failure(404, str(error), "invalid_request_error", None, "response_not_found")
        case BodyTooLargeError():
            return Failure(413, str(error), "invalid_request_error", None, "request_too_large")
        case HTTPException():
            return _of_http(error)
    return Failure(500, "The server failed at this request; its log says why.", "server_error", None, "internal_error")


def unauthorized() -> Failure:
    """The answer to a request without one of the keys."""
    message = "Incorrect or missing API key: send one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
    headers = {"WWW-Authenticate": "Bearer"}
    return Failure(401, message, "invalid_request_error", None, "invalid_api_key", headers)


def request_error_of(invalid: ValidationError, body: bytes) -> RequestError:
    """The first complaint of pydantic about a body, with the field as the client wrote it."""
    complaints = invalid.errors(include_url=False, include_context=False, include_input=False)
    first = complaints[0]
    if first["type"] == "json_invalid":
        reason = first["msg"].removeprefix("Invalid JSON: ")
        return RequestError(f"The request body is not valid JSON: {reason}", code="invalid_json")
    # Of the branches of a union the one that came furthest knows best what is wrong.
    document = _load(body)
    best = max(complaints, key=lambda complaint: len(_path(complaint["loc"], document)))
    path = _path(best["loc"], document)
    param = ".".join(path) or None
    message = best["msg"].removeprefix("Value error, ")
    return RequestError(f"{param}: {message}" if param else f"The request body is wrong: {message}", param=param)


def add_handlers(app: FastAPI) -> None:
    """Answer every failure, unknown routes included, in the envelope."""

    async def answer(request: Request, error: Exception) -> Response:
        return failure_of(error).response()

    app.add_exception_handler(FermiError, answer)
    app.add_exception_handler(HTTPException, answer)


def _of_http(error: HTTPException) -> Failure:
    message = {404: "There is no such route.", 405: "This route does not take this method."}
    headers = error.headers or {}
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return Failure(error.status_code, message.get(error.status_code, str(error.detail)), kind, None, code, headers)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _load(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _path(loc: Sequence[int | str], document: Any) -> list[str]:
    """The part of pydantic's location that stands in the document: names of union branches do not."""
    path: list[str] = []
    for at, step in enumerate(loc):
        here = step in document if isinstance(document, dict) else isinstance(document, list) and isinstance(step, int)
        if not here and (at < len(loc) - 1 or not isinstance(document, dict) or step in _TYPES):
            continue  # a branch of a union, and not a field that is missing
        path.append(str(step))
        document = document[step] if here else None
    return path
