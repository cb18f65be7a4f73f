"""Around every request: its id, the limit of its body, its line in the log, and an answer whatever happens."""

from __future__ import annotations

import re
import time
from email.utils import formatdate

import structlog
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fermi.server.errors import BodyTooLargeError, failure_of, speaks_anthropic
from fermi.server.exchange import Exchange, current
from fermi.server.ids import new_id
from fermi.server.metrics import OTHER, Metrics
from fermi.server.state import ServerState
from fermi.server.tracing import Tracer

QUIET = frozenset({"/health", "/ready", "/ping", "/metrics"})  # not counted as work, logged for debugging only
LEFT = 499  # in the log, for a client that left before it was answered
SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Requests:
    """The outermost layer: numbers, counts and logs requests, and turns the unforeseen into an answer.

    The request's id is the client's x-request-id where it is printable, else a new one; it stands in its `Exchange`,
    in ``scope["state"]["request_id"]``, in the answer and in the log.
    """

    def __init__(
        self, app: ASGIApp, state: ServerState, metrics: Metrics, paths: frozenset[str], tracer: Tracer | None = None
    ) -> None:
        """``paths``: those that metrics tell apart although no route was found, as of requests without a key."""
        self._app = app
        self._state = state
        self._metrics = metrics
        self._paths = paths
        self._tracer = tracer
        self._log = structlog.get_logger("fermi.server")
        self._log_prompts = state.settings.log.prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        exchange = Exchange(request_id, log_prompts=self._log_prompts, record=self._metrics.used)
        current.set(exchange)
        scope.setdefault("state", {}).update(request_id=request_id, key_id="", admin=False)
        began, start, status = time.time_ns(), time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", request_id.encode()), (b"date", formatdate(usegmt=True).encode())]
                if speaks_anthropic(scope["path"]):
                    own.append((b"request-id", request_id.encode()))
                message["headers"] = [*message.get("headers", ()), *own, *SECURITY]
            await send(message)

        work = scope["path"] not in QUIET
        self._state.total_requests += 1
        self._state.running += work
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:  # before its request was complete
            exchange.client_left = True
        except Exception as error:
            self._log.exception("request failed", request_id=request_id, path=_shown(scope))
            if not status:
                await failure_of(error).response()(scope, receive, send_with_id)
        finally:
            self._state.ended(work)
            exchange.answered()
            self._note(scope, exchange, LEFT if exchange.client_left else status, began, time.perf_counter() - start)

    def _note(self, scope: Scope, exchange: Exchange, status: int, began: int, seconds: float) -> None:
        """Log, count and trace a request that has ended. ``began``: in nanoseconds since 1970."""
        path = scope["path"]
        route = getattr(scope.get("route"), "path", None)
        endpoint = route or (path if path in self._paths else OTHER)
        usage = exchange.usage
        used = {} if usage is None else {"prompt_tokens": usage.prompt_tokens}
        if usage is not None and exchange.sampling is not None:
            used["completion_tokens"] = usage.completion_tokens
        (self._log.debug if path in QUIET else self._log.info)(
            f"{scope['method']} {_shown(scope)}",
            request_id=exchange.request_id,
            status=status,
            duration_ms=round(1000 * seconds, 1),
            **used,
            **({"key_id": exchange.key_id} if exchange.key_id else {}),
            **({"user": exchange.user} if exchange.user else {}),
        )
        self._metrics.ended(exchange, endpoint, status, seconds)
        if self._tracer is not None and path not in QUIET:
            self._tracer.record(scope, exchange, endpoint, status, began, began + int(1e9 * seconds))


class BodyLimit:
    """Refuses a body beyond the limit, before it is read if its length is told, else while it comes."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = Headers(scope=scope).get("content-length", "")
        if told.isascii() and told.isdigit() and int(told[:19]) > self._limit:
            response = failure_of(self._error()).response()
            response.headers["connection"] = "close"  # the body is not read
            await response(scope, receive, send)
            return
        read = 0

        async def receive_counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._limit:
                raise self._error()
            return message

        await self._app(scope, receive_counted, send)

    def _error(self) -> BodyTooLargeError:
        return BodyTooLargeError(f"The request body is larger than {self._limit} bytes.")


def _request_id(scope: Scope) -> str:
    """The client's, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return new_id()


def _shown(scope: Scope) -> str:
    """The path as it was sent: in the log nothing of it is a line's end, or a terminal's command."""
    sent: bytes = scope.get("raw_path") or scope["path"].encode()
    return sent.partition(b"?")[0].decode("ascii", "backslashreplace")
