"""Server-sent events: chunks as they come, a sign of life in silence, an end for a client that leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fermi.errors import FermiError
from fermi.server.errors import failure_of
from fermi.server.exchange import exchange
from fermi.server.log import logger

PING_S = 8.0  # at least every 10 s, so that no proxy takes a long prefill for a dead connection
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}


def data(document: Mapping[str, Any]) -> bytes:
    """One event without a name."""
    return b"data: " + to_json(document, inf_nan_mode="null") + b"\n\n"


@asynccontextmanager
async def hang_up(receive: Receive, cancel: Callable[[], None]) -> AsyncIterator[None]:
    """While the block runs, call ``cancel`` as soon as the client is gone. The request's body must have been read."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        exchange().client_left = True
        cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


class EventStream(Response):
    """Sends events as they are made.

    The status is sent with the first event, so an error before it is answered with its own status; an error after it
    is an event, and the stream closes. After `PING_S` seconds of silence a comment goes out, and with it the status.
    """

    def __init__(self, events: AsyncIterator[bytes], cancel: Callable[[], None], *, ping: bytes = PING) -> None:
        """``events`` ends soon after ``cancel`` is called, which happens when the client leaves; ``ping`` goes out in
        silence."""
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)  # unlike Response's own beginning, without a content-length
        self._events = events
        self._cancel = cancel
        self._ping = ping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wire = _Wire(send, self.raw_headers, PING_S, self._ping)
        try:
            async with hang_up(receive, self._cancel):
                async for event in self._events:
                    await asyncio.sleep(0)  # all streams of a step write in a row: only the first wakes their client
                    await wire.send(event)
        except Exception as error:
            if not wire.started:
                raise
            if not isinstance(error, FermiError):
                logger().exception("request failed", request_id=exchange().request_id, path=scope["path"])
            await wire.send(failure_of(error).event(scope["path"]))
        finally:
            self._cancel()
            wire.stop()
        await wire.close()


class _Wire:
    """The body of one response: events and, between them in silence, pings."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]], ping_s: float, ping: bytes) -> None:
        self.started = False
        self._send = send
        self._headers = headers
        self._ping_s = ping_s
        self._ping = ping
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._last = self._loop.time()
        self._timer = self._loop.call_later(ping_s, self._look)
        self._pinging: asyncio.Task[None] | None = None

    async def send(self, body: bytes) -> None:
        """Send one event, and the status before the first."""
        async with self._lock:
            if not self.started:
                self.started = True
                await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            self._last = self._loop.time()

    async def close(self) -> None:
        """End the body."""
        if self._pinging is not None:
            with suppress(Exception):
                await self._pinging
        if self.started:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def stop(self) -> None:
        """No more pings."""
        self._timer.cancel()

    def _look(self) -> None:
        """Ping if it has been silent; look again when it might be next. One timer serves the whole stream."""
        silence = self._loop.time() - self._last
        if silence >= self._ping_s:
            if not self._lock.locked():  # else it is the client that does not read
                self._pinging = self._loop.create_task(self.send(self._ping))
            silence = 0.0
        self._timer = self._loop.call_later(self._ping_s - silence, self._look)
