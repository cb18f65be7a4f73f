"""The events of one request, for one reader on its event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fermi.engine.event import Event
from fermi.engine.sequence import Request

__all__ = ["Stream"]


class Stream:
    """An asynchronous iterator that ends when every sequence of the request has ended, or with ``cancel``.

    Events that a reader has not taken join into one per sequence, so a slow reader holds up nobody and keeps at most
    the tokens it asked for. Errors come as events with a ``finish_reason``; iterating raises nothing of its own.
    Everything here happens on the reader's event loop.
    """

    def __init__(self, request: Request, abort: Callable[[str, int | None], None]) -> None:
        self.request = request
        self._abort = abort
        self._pending: dict[int, Event] = {}
        self._open = set(range(request.sampling.n))  # sequences that have not ended
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        while not self._pending:
            if not self._open:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._pending.pop(next(iter(self._pending)))

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self, index: int | None = None) -> None:
        """Ends the request, or one of its sequences; what it holds is free within a step. No more events come of it."""
        ending = self._open if index is None else self._open & {index}
        if ending:
            self._abort(self.request.id, index)
            self._open = self._open - ending
        for each in list(self._pending) if index is None else [index]:
            self._pending.pop(each, None)
        self._wake()

    def receive(self, event: Event) -> None:
        """Takes in news, on the reader's event loop."""
        if event.index not in self._open:
            return
        if event.index in self._pending:
            self._pending[event.index].absorb(event)
        else:
            self._pending[event.index] = event
        if event.finish_reason is not None:
            self._open.discard(event.index)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
