"""Between the event loops of clients and the thread of an embedder."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fermi.engine.embedder import Embedder
from fermi.engine.worker import Worker
from fermi.errors import EngineError, QueueFullError
from fermi.models.embedding import TokenSequence

__all__ = ["MOST_FAILURES", "EmbeddingService", "EmbeddingStats", "Rows"]

#: Batches that may fail in a row before the fault is not the requests'.
MOST_FAILURES = 3

#: What a request gets: float32 [sequences, dim].
Rows: TypeAlias = npt.NDArray[np.float32]


class EmbeddingStats(NamedTuple):
    """Counts of now and since the start.

    Attributes:
        waiting: sequences that no batch has taken; ``waiting_tokens``: their tokens.
        batches, sequences, tokens: what has been computed.
    """

    waiting: int = 0
    waiting_tokens: int = 0
    batches: int = 0
    sequences: int = 0
    tokens: int = 0


class _Job:
    """The sequences of one request, what has come of them, and whom to tell."""

    def __init__(self, sequences: Sequence[TokenSequence], dim: int, loop: asyncio.AbstractEventLoop) -> None:
        lengths = [len(sequence.token_ids) for sequence in sequences]
        self.sequences = sequences
        self.waiting = deque(sorted(range(len(sequences)), key=lengths.__getitem__, reverse=True))
        self.waiting_tokens = sum(lengths)
        self.missing = len(sequences)
        self.rows = np.empty((len(sequences), dim), np.float32)
        self.loop = loop
        self.future: asyncio.Future[Rows] = loop.create_future()

    def take(self) -> int:
        """The place of the longest sequence that waits."""
        place = self.waiting.popleft()
        self.waiting_tokens -= len(self.sequences[place].token_ids)
        return place

    @property
    def next_length(self) -> int:
        return len(self.sequences[self.waiting[0]].token_ids)

    def settle(self, result: Rows | EngineError) -> None:
        """On its event loop."""
        if self.future.done():
            return
        if isinstance(result, EngineError):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


class EmbeddingService(Worker):
    """Runs an embedder on a thread of its own; the sequences of several requests share its batches, each in turn.

    Methods may be called on any event loop; a result belongs to the loop that it was asked for on.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        max_queued_requests: int = 1024,
        max_queued_tokens: int = 2**22,
        max_restarts: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` gives seconds; what a token takes by it says when a refused client should try again.

        ``max_restarts``: of the embedder's thread after crashes, in a row.
        """
        super().__init__("fermi-embedder", max_restarts=max_restarts)
        self._failures = 0  # batches that failed, in a row
        self._embedder = embedder
        self._max_queued_requests = max_queued_requests
        self._max_queued_tokens = max_queued_tokens
        self._clock = clock
        self._open: set[_Job] = set()  # this and all below under the condition
        self._waiting: deque[_Job] = deque()  # those with sequences that no batch has taken; the next in turn first
        self._stats = EmbeddingStats()
        self._token_s = 1e-4  # a running mean

    # On the event loops

    @property
    def open_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    @property
    def stats(self) -> EmbeddingStats:
        """Counts of now and since the start."""
        with self._condition:
            return self._stats._replace(
                waiting=sum(len(job.waiting) for job in self._waiting),
                waiting_tokens=sum(job.waiting_tokens for job in self._waiting),
            )

    def submit(self, sequences: Sequence[TokenSequence], param: str = "input") -> asyncio.Future[Rows]:
        """Queues a request of the running event loop; its result is float32 [sequences, dim].

        Cancelling the future drops the sequences that no batch has taken. ``param`` names in errors the field of the
        request that holds them.

        Raises:
            RequestError: it can never be served.
            QueueFullError: too many wait; says when to try again.
            EngineDownError: the service has stopped, or was not started.
            EngineError: as the future's: it failed.
        """
        self._embedder.check(sequences, param)
        job = _Job(sequences, self._embedder.dim, asyncio.get_running_loop())
        with self._condition:
            self._refuse_unless_ready()
            if not sequences:
                job.settle(job.rows)
                return job.future
            self._refuse_when_full(job.waiting_tokens)
            self._open.add(job)
            self._waiting.append(job)
            self._condition.notify_all()
        job.future.add_done_callback(partial(self._leave, job))
        return job.future

    def _refuse_when_full(self, tokens: int) -> None:
        waiting_tokens = sum(job.waiting_tokens for job in self._waiting)
        full = len(self._waiting) >= self._max_queued_requests
        if full or (self._waiting and waiting_tokens + tokens > self._max_queued_tokens):
            retry_after = min(60.0, max(1.0, self._token_s * waiting_tokens))
            raise QueueFullError(f"{len(self._waiting)} requests wait already", retry_after=retry_after)

    def _leave(self, job: _Job, future: asyncio.Future[Rows]) -> None:
        if future.cancelled():
            with self._condition:
                self._drop(job)

    def _drop(self, job: _Job) -> None:
        """Forgets a request, under the condition."""
        self._open.discard(job)
        if job in self._waiting:
            self._waiting.remove(job)
        self._condition.notify_all()  # a drain may wait for this

    # On the embedder's thread

    def _turn(self) -> bool:
        """Waits for work and does a batch of it; False after the last."""
        with self._condition:
            while not (self._waiting or self._stopping):
                self._condition.wait()
            stopping = self._stopping
            batch = [] if stopping else self._next_batch()
        if stopping:
            self._end_all("the request was aborted: the engine stops")
            return False
        if batch:
            self._run_batch(batch)
        return True

    def _next_batch(self) -> list[tuple[_Job, int]]:
        """A sequence of each request in turn, until the next would not fit, so that a small one never waits long."""
        batch: list[tuple[_Job, int]] = []
        room = self._embedder.max_batch_tokens
        while self._waiting:
            job = self._waiting[0]
            if job.loop.is_closed():
                self._drop(job)  # nobody reads
                continue
            length = job.next_length
            if batch and length > room:
                break
            room -= length
            batch.append((job, job.take()))
            self._waiting.popleft()
            if job.waiting:
                self._waiting.append(job)
        return batch

    def _run_batch(self, batch: list[tuple[_Job, int]]) -> None:
        sequences = [job.sequences[place] for job, place in batch]
        start = self._clock()
        try:
            rows = self._embedder.run(sequences)
        except Exception as error:
            self._failures += 1
            if self._failures >= MOST_FAILURES:
                raise
            failure = EngineError(f"the engine has failed: {type(error).__name__}: {error}")
            self._end({job for job, _ in batch}, failure)
            return
        self._failures = 0
        self._worked()
        tokens = sum(len(sequence.token_ids) for sequence in sequences)
        ended: set[_Job] = set()
        for (job, place), row in zip(batch, rows, strict=True):
            job.rows[place] = row
            job.missing -= 1
            if not job.missing:
                ended.add(job)
        with self._condition:
            before = self._stats
            self._stats = EmbeddingStats(
                batches=before.batches + 1,
                sequences=before.sequences + len(batch),
                tokens=before.tokens + tokens,
            )
            self._token_s += ((self._clock() - start) / tokens - self._token_s) / 16
        self._end(ended)

    def _end(self, jobs: set[_Job], failure: EngineError | None = None) -> None:
        """Tells each event loop which of its requests have ended: one wake-up of each."""
        loops: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
        with self._condition:
            for job in jobs:
                self._drop(job)
                loops.setdefault(job.loop, []).append(job)
        for loop, ended in loops.items():
            try:
                loop.call_soon_threadsafe(_settle, ended, failure)
            except RuntimeError:  # the loop is closed: nobody reads
                continue

    def _end_all(self, message: str) -> None:
        with self._condition:
            left = set(self._open)
        self._end(left, EngineError(message))

    def _reset(self) -> None:
        """An embedder keeps nothing between its batches."""
        self._failures = 0


def _settle(jobs: Sequence[_Job], failure: EngineError | None) -> None:
    for job in jobs:
        job.settle(job.rows if failure is None else failure)
