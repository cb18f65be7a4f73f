"""Several engines with the same weights as one: each request goes where its prompt is cached, or where least runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import NamedTuple, Protocol

from fermi.engine.blocks import PoolStats
from fermi.engine.distribution import Distribution
from fermi.engine.scheduler import SchedulerStats
from fermi.engine.sequence import Request
from fermi.engine.service import BATCH_SIZES, Service
from fermi.engine.stream import Stream
from fermi.errors import EngineDownError, QueueFullError

__all__ = ["Cache", "Pool", "Replica"]

#: How many more open requests than the least busy replica the one may have that holds a prompt's beginning: a prefix
#: saves one prefill, a queue costs everything before it.
SLACK = 4


class Cache(Protocol):
    """What a replica's prefix cache is asked: see `fermi.engine.engine.Engine`."""

    def block_keys(self, request: Request) -> Iterator[bytes]: ...
    def caches(self, key: bytes) -> bool: ...


class Replica(NamedTuple):
    """One engine: its thread, and its prefix cache."""

    service: Service
    cache: Cache


class Pool:
    """Replicas of an engine, as if they were one `Service`."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        """The replicas' services are started by ``start``."""
        self._replicas = list(replicas)
        self._given = [0] * len(self._replicas)  # requests so far

    def start(self) -> None:
        """Starts every replica."""
        for replica in self._replicas:
            replica.service.start()

    @property
    def ready(self) -> bool:
        """Whether every replica accepts requests."""
        return all(replica.service.ready for replica in self._replicas)

    @property
    def alive(self) -> bool:
        """Whether no replica has ended."""
        return all(replica.service.alive for replica in self._replicas)

    @property
    def open_requests(self) -> int:
        """Requests that have not ended."""
        return sum(replica.service.open_requests for replica in self._replicas)

    @property
    def stats(self) -> SchedulerStats:
        """The counts of all replicas together."""
        each = [replica.service.stats for replica in self._replicas]
        blocks = PoolStats(*(sum(getattr(one.blocks, name.name) for one in each) for name in fields(PoolStats)))
        counts = [name.name for name in fields(SchedulerStats) if name.name != "blocks"]
        return SchedulerStats(**{name: sum(getattr(one, name) for one in each) for name in counts}, blocks=blocks)

    @property
    def batch_sizes(self) -> Distribution:
        """Steps of all replicas by the sequences that were computed in them."""
        sizes = Distribution(BATCH_SIZES)
        for replica in self._replicas:
            sizes.merge(replica.service.batch_sizes)
        return sizes

    @property
    def restarts(self) -> int:
        """How often replicas have started anew after a crash."""
        return sum(replica.service.restarts for replica in self._replicas)

    async def stop(self, drain_s: float = 0.0) -> None:
        """Refuses new requests, gives the others that many seconds, aborts what is left, and ends every thread."""
        await asyncio.gather(*(replica.service.stop(drain_s) for replica in self._replicas))

    def submit(self, request: Request) -> Stream:
        """Queues a request at the replica that suits it best, at the next best where too many wait. Raises as
        `Service.submit`."""
        full: QueueFullError | None = None
        for place in self._by_suitability(request):
            try:
                stream = self._replicas[place].service.submit(request)
            except QueueFullError as error:
                full = full or error
            else:
                self._given[place] += 1
                return stream
        raise full or EngineDownError("The engine is not running: it restarts after a failure, or has ended.")

    def _by_suitability(self, request: Request) -> list[int]:
        """Replicas that live: the one that holds most of the prompt's beginning, unless it is much busier than the
        least busy, then by how many requests they have; among equals the one of the request's affinity, else the
        one that got fewest so far."""
        living = [place for place, replica in enumerate(self._replicas) if replica.service.ready]
        if not living:
            return []
        busy = {place: self._replicas[place].service.open_requests for place in living}
        home = request.affinity % len(self._replicas) if request.affinity else -1
        order = sorted(living, key=lambda place: (busy[place], place != home, self._given[place], place))
        found = self._holding(request, living)
        allowed = busy[order[0]] + SLACK
        best = max(order, key=lambda place: found[place] if busy[place] <= allowed else 0)  # the first of equals
        order.remove(best)
        return [best, *order]

    def _holding(self, request: Request, living: Sequence[int]) -> dict[int, int]:
        """How many blocks of the prompt's beginning each replica has in its cache."""
        found = dict.fromkeys(living, 0)
        holding = list(living)
        for key in self._replicas[living[0]].cache.block_keys(request):
            holding = [place for place in holding if self._replicas[place].cache.caches(key)]
            if not holding:
                break
            for place in holding:
                found[place] += 1
        return found
