"""Between the event loops of clients and the thread of the engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Protocol

from fermi.engine.distribution import Distribution
from fermi.engine.event import Event
from fermi.engine.scheduler import SchedulerStats
from fermi.engine.sequence import Request
from fermi.engine.stream import Stream
from fermi.engine.worker import Worker
from fermi.errors import QueueFullError, RequestError

__all__ = ["BATCH_SIZES", "Service", "Steps"]

#: Bounds of the steps' numbers of sequences that are told apart.
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Steps(Protocol):
    """What the service drives: see `fermi.engine.engine.Engine`."""

    @property
    def has_work(self) -> bool: ...
    def check(self, request: Request) -> None: ...
    def add(self, request: Request) -> None: ...
    def abort(self, request_id: str, index: int | None = None) -> None: ...
    def abort_all(self) -> None: ...
    def step(self) -> list[Event]: ...
    def reset(self) -> None: ...
    def stats(self) -> SchedulerStats: ...


class Outbox:
    """News on their way from the engine's thread to one event loop: one wake-up per step, none while one is due."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._news: dict[tuple[Stream, int], Event] = {}
        self._due = False

    def send(self, news: list[tuple[Stream, Event]]) -> None:
        """Called on the engine's thread. RuntimeError when the loop is closed."""
        with self._lock:
            for stream, event in news:
                known = self._news.setdefault((stream, event.index), event)
                if known is not event:
                    known.absorb(event)
            wake, self._due = not self._due, True
        if wake:
            self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        with self._lock:
            news, self._news = self._news, {}
            self._due = False
        for (stream, _), event in news.items():
            stream.receive(event)


class Service(Worker):
    """Runs an engine on a thread of its own and gives each request a stream.

    Methods may be called on any event loop; a stream belongs to the loop it was submitted on.
    """

    def __init__(
        self,
        engine: Steps,
        *,
        max_running: int = 64,
        max_queued_requests: int = 1024,
        max_queued_tokens: int = 2**22,
        max_restarts: int = 0,
    ) -> None:
        """
        Args:
            max_running: sequences that the engine runs at a time; beyond them requests and their prompts queue.
            max_restarts: of the engine after crashes, in a row; its prefix cache is empty then.
        """
        super().__init__("fermi-engine", max_restarts=max_restarts)
        self._engine = engine
        self._max_running = max_running
        self._max_queued_requests = max_queued_requests
        self._max_queued_tokens = max_queued_tokens
        self._inbox: list[Callable[[], None]] = []  # this and all below under the condition
        self._posted_requests = 0  # in the inbox
        self._posted_tokens = 0
        self._streams: dict[str, tuple[Stream, Outbox, set[int]]] = {}  # with the sequences that have not ended
        self._outboxes: dict[asyncio.AbstractEventLoop, Outbox] = {}
        self._stats = engine.stats()
        self._batch_sizes = Distribution(BATCH_SIZES)
        self._life_s = 1.0  # of a request, a running mean

    # On the event loops

    @property
    def stats(self) -> SchedulerStats:
        """The engine's counts after its last step."""
        return self._stats

    @property
    def batch_sizes(self) -> Distribution:
        """Steps by the sequences that were computed in them."""
        return self._batch_sizes

    @property
    def open_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    def submit(self, request: Request) -> Stream:
        """Queues a request of the running event loop.

        Raises:
            RequestError: it can never be served, or its id is in use.
            QueueFullError: too many wait; says when to try again.
            EngineDownError: the service has stopped, starts anew, or was not started.
        """
        self._engine.check(request)
        loop = asyncio.get_running_loop()
        tokens = len(request.prompt_token_ids)
        stream = Stream(request, self._abort)
        with self._condition:
            self._refuse_unless_ready()
            if request.id in self._streams:
                raise RequestError(f"a request with the id {request.id!r} is running")
            self._refuse_when_full(tokens)
            self._streams[request.id] = (stream, self._outbox(loop), set(range(request.sampling.n)))
            self._posted_requests += 1
            self._posted_tokens += tokens
            self._inbox.append(partial(self._add, request))
            self._condition.notify_all()
        return stream

    def _outbox(self, loop: asyncio.AbstractEventLoop) -> Outbox:
        outbox = self._outboxes.get(loop)
        if outbox is None:
            self._outboxes = {other: box for other, box in self._outboxes.items() if not other.is_closed()}
            outbox = self._outboxes[loop] = Outbox(loop)
        return outbox

    def _refuse_when_full(self, tokens: int) -> None:
        stats = self._stats
        waiting = self._posted_requests + stats.waiting
        idle = max(0, self._max_running - stats.running)
        waiting_tokens = self._posted_tokens + stats.waiting_tokens
        full = waiting >= self._max_queued_requests + idle
        if full or (waiting > idle and waiting_tokens + tokens > self._max_queued_tokens):
            retry_after = min(60.0, max(1.0, self._life_s * (waiting + 1) / self._max_running))
            raise QueueFullError(f"{waiting} requests wait already", retry_after=retry_after)

    def _abort(self, request_id: str, index: int | None) -> None:
        with self._condition:
            self._inbox.append(partial(self._engine.abort, request_id, index))
            self._condition.notify_all()

    # On the engine's thread

    def _turn(self) -> bool:
        """Waits for work and does a step of it; False after the last."""
        engine = self._engine
        with self._condition:
            while not (self._inbox or self._stopping or engine.has_work):
                self._condition.wait()
            commands, self._inbox = self._inbox, []
            stopping = self._stopping
        for command in commands:
            command()
        if stopping:
            engine.abort_all()
        if engine.has_work:
            self._deliver(engine.step())
        return not stopping

    def _add(self, request: Request) -> None:
        with self._condition:
            self._posted_requests -= 1
            self._posted_tokens -= len(request.prompt_token_ids)
        try:
            self._engine.add(request)
        except Exception as error:
            self._deliver([_error(request, index, str(error)) for index in range(request.sampling.n)])
        self._stats = self._engine.stats()

    def _deliver(self, events: list[Event]) -> None:
        """Sends each event loop its news, and forgets the requests that have ended."""
        news: dict[Outbox, list[tuple[Stream, Event]]] = {}
        with self._condition:
            self._note_stats()
            for event in events:
                entry = self._streams.get(event.request_id)
                if entry is None:
                    continue
                stream, outbox, unended = entry
                news.setdefault(outbox, []).append((stream, event))
                if event.finish_reason is not None:
                    unended.discard(event.index)
                    if event.finish_reason in ("stop", "length"):
                        self._worked()
                    if event.timing is not None:
                        life_s = event.timing.first_token_s + event.timing.decode_s
                        self._life_s += (life_s - self._life_s) / 16
                    if not unended:
                        del self._streams[event.request_id]
            if not self._streams:
                self._condition.notify_all()  # a drain may wait for this
        for outbox, entries in news.items():
            self._send(outbox, entries)

    def _note_stats(self) -> None:
        before, self._stats = self._stats, self._engine.stats()
        if self._stats.steps > before.steps:
            self._batch_sizes.add(self._stats.step_sequences - before.step_sequences)

    def _send(self, outbox: Outbox, news: list[tuple[Stream, Event]]) -> None:
        try:
            outbox.send(news)
        except RuntimeError:  # the loop is closed: nobody reads
            for stream, _ in news:
                self._engine.abort(stream.request.id)

    def _end_all(self, message: str) -> None:
        with self._condition:
            left = list(self._streams.values())
            self._streams.clear()
            self._inbox.clear()
            self._posted_requests = self._posted_tokens = 0
            self._condition.notify_all()
        for stream, outbox, unended in left:
            news = [(stream, _error(stream.request, index, message)) for index in sorted(unended)]
            try:
                outbox.send(news)
            except RuntimeError:
                continue

    def _reset(self) -> None:
        self._engine.reset()
        self._stats = self._engine.stats()


def _error(request: Request, index: int, message: str) -> Event:
    return Event(request.id, index, finish_reason="error", error=message)
