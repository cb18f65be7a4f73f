"""Several engines as one: which of them a request goes to, and what all of them count together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from engine.test_service import ScriptedEngine, acquired
from fermi.engine.blocks import block_key, root_key
from fermi.engine.pool import SLACK, Pool, Replica
from fermi.engine.sampling import Sampling
from fermi.engine.sequence import Request
from fermi.engine.service import Service
from fermi.errors import EngineDownError, QueueFullError, RequestError


class ScriptedCache:
    """Blocks of four tokens, of the prompts that the test names."""

    def __init__(self) -> None:
        self.keys: set[bytes] = set()

    def block_keys(self, request: Request) -> Iterator[bytes]:
        key = root_key(request.cache_salt)
        for end in range(4, len(request.prompt_token_ids) + 1, 4):
            key = block_key(key, request.prompt_token_ids[end - 4 : end])
            yield key

    def caches(self, key: bytes) -> bool:
        return key in self.keys

    def keep(self, *token_ids: int) -> None:
        self.keys |= set(self.block_keys(request_of("", *token_ids)))


def request_of(name: str, *token_ids: int, max_tokens: int = 1) -> Request:
    return Request(id=name, prompt_token_ids=list(token_ids), sampling=Sampling(max_tokens=max_tokens))


class Replicas:
    """A pool of scripted engines that step when they are permitted to."""

    def __init__(self, count: int, **options: int) -> None:
        self.engines = [ScriptedEngine() for _ in range(count)]
        self.caches = [ScriptedCache() for _ in range(count)]
        self.services = [Service(engine, **options) for engine in self.engines]
        self.pool = Pool([Replica(*each) for each in zip(self.services, self.caches, strict=True)])
        self.names = iter(range(1000))

    async def __aenter__(self) -> Replicas:
        self.pool.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for engine in self.engines:
            engine.free = True
            engine.permits.release(1000)
        await self.pool.stop()

    def submit(self, *token_ids: int) -> int:
        """The replica that a request goes to; it stays open."""
        before = self.open
        self.pool.submit(request_of(str(next(self.names)), *token_ids))
        [place] = [place for place, (old, new) in enumerate(zip(before, self.open, strict=True)) if new > old]
        return place

    @property
    def open(self) -> list[int]:
        return [service.open_requests for service in self.services]


async def test_what_is_new_goes_where_least_runs() -> None:
    async with Replicas(3) as replicas:
        assert [replicas.submit(1, 2) for _ in range(6)] == [0, 1, 2, 0, 1, 2]
        assert replicas.pool.open_requests == 6


async def test_among_equals_each_has_its_turn() -> None:
    async with Replicas(2) as replicas:
        for engine in replicas.engines:
            engine.free = True
        places = []
        for name in "abcd":
            before = [len(engine.requests) for engine in replicas.engines]
            async for _ in replicas.pool.submit(request_of(name, 1)):
                pass
            after = [len(engine.requests) for engine in replicas.engines]
            places.append([new - old for old, new in zip(before, after, strict=True)].index(1))
        assert places == [0, 1, 0, 1]


async def test_a_known_beginning_goes_where_most_of_it_is_kept() -> None:
    async with Replicas(3) as replicas:
        prompt = range(12)
        replicas.caches[1].keep(*range(4))
        replicas.caches[2].keep(*range(8))
        assert replicas.submit(*prompt) == 2
        assert replicas.submit(*prompt) == 2
        assert replicas.submit(*range(4), 9, 9, 9, 9) in (1, 2)
        assert replicas.submit(5, *prompt) == 0  # begins otherwise


async def test_a_replica_that_is_much_busier_is_passed_over() -> None:
    async with Replicas(2) as replicas:
        replicas.caches[1].keep(*range(8))
        places = [replicas.submit(*range(8)) for _ in range(SLACK + 4)]
        assert places[: SLACK + 1] == [1] * (SLACK + 1)
        assert 0 in places[SLACK + 1 :]


async def test_a_full_replica_sends_to_the_next_and_a_full_pool_refuses() -> None:
    async with Replicas(2, max_running=1, max_queued_requests=1) as replicas:
        replicas.caches[0].keep(*range(4))
        assert [replicas.submit(*range(4)) for _ in range(4)] == [0, 0, 1, 1]
        with pytest.raises(QueueFullError):
            replicas.pool.submit(request_of("more", *range(4)))
        with pytest.raises(RequestError, match="empty"):
            replicas.pool.submit(request_of("nothing"))


async def test_what_fails_is_left_out() -> None:
    async with Replicas(2) as replicas:
        replicas.engines[0].failure = SystemExit("gone")
        stream = replicas.pool.submit(request_of("a", 1))
        replicas.engines[0].permits.release()
        assert [event.finish_reason async for event in stream] == ["error"]
        assert [replicas.submit(1) for _ in range(2)] == [1, 1]
        assert not replicas.pool.ready


async def test_counts_are_summed_and_the_end_ends_all() -> None:
    replicas = Replicas(2)
    async with replicas:
        assert replicas.pool.ready
        stats = [service.stats for service in replicas.services]
        assert replicas.pool.stats.blocks.total == sum(each.blocks.total for each in stats)
        assert replicas.pool.stats.generated_tokens == sum(each.generated_tokens for each in stats)
        streams = [replicas.pool.submit(request_of(name, 1, max_tokens=10**9)) for name in "ab"]
        stopping = asyncio.ensure_future(replicas.pool.stop())
        for engine in replicas.engines:
            engine.free = True
            engine.permits.release(1000)
        await stopping
        for stream in streams:
            assert [event.finish_reason async for event in stream][-1] == "abort"
        assert not replicas.pool.ready
        with pytest.raises(EngineDownError):
            replicas.pool.submit(request_of("late", 1))


async def test_a_replica_that_crashes_starts_anew_while_the_others_work() -> None:
    async with Replicas(2, max_restarts=1) as replicas:
        crashing, pool = replicas.engines[0], replicas.pool
        crashing.failure, crashing.resets = SystemError("what nobody foresaw"), [None]
        assert replicas.submit(1, 2) == 0
        crashing.permits.release(1)
        await acquired(crashing.resetting)
        assert pool.alive
        assert not pool.ready
        assert [replicas.submit(1, 2) for _ in range(2)] == [1, 1]
        crashing.may_reset.release()
        while not pool.ready:
            await asyncio.sleep(0)
        assert pool.restarts == 1
        assert replicas.submit(1, 2) == 0
