"""Around every request: its id, the limit of its body, its line in the log, and an answer whatever happens."""

from __future__ import annotations

import re
import time
import uuid
from email.utils import formatdate

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fermi.server.errors import BodyTooLargeError, failure_of
from fermi.server.exchange import Exchange, current
from fermi.server.state import ServerState

OPEN = frozenset({"/health", "/ready", "/ping"})  # answered without a key, and not counted as work
LEFT = 499  # in the log, for a client that left before it was answered
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Requests:
    """The outermost layer: numbers, counts and logs requests, and turns the unforeseen into an answer.

    The request's id is the client's x-request-id where it is printable, else a new one; it stands in
    ``scope["state"]["request_id"]``, in the answer and in the log.
    """

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state
        self._log = structlog.get_logger("fermi.server")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        notes: dict[str, object] = scope.setdefault("state", {})
        notes.update(request_id=request_id, key_id="", admin=False)
        current.set(Exchange(request_id))
        start = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["date"] = formatdate(usegmt=True)
            await send(message)

        work = scope["path"] not in OPEN
        self._state.total_requests += 1
        self._state.running += work
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:  # before its request was complete
            status = LEFT
        except Exception as error:
            self._log.exception("request failed", request_id=request_id, path=scope["path"])
            if not status:
                await failure_of(error).response()(scope, receive, send_with_id)
        finally:
            self._state.ended(work)
            (self._log.info if work else self._log.debug)(
                f"{scope['method']} {scope['path']}",
                request_id=request_id,
                status=status,
                duration_ms=round(1000 * (time.perf_counter() - start), 1),
                **{name: notes[name] for name in ("prompt_tokens", "completion_tokens") if name in notes},
            )


class BodyLimit:
    """Refuses a body beyond the limit, before it is read if its length is told, else while it comes."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._error = BodyTooLargeError(f"The request body is larger than {limit} bytes.")
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = Headers(scope=scope).get("content-length", "")
        if told.isascii() and told.isdigit() and int(told[:19]) > self._limit:
            response = failure_of(self._error).response()
            response.headers["connection"] = "close"  # the body is not read
            await response(scope, receive, send)
            return
        read = 0

        async def receive_counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._limit:
                raise self._error
            return message

        await self._app(scope, receive_counted, send)
