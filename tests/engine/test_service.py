"""The service with an engine that steps when the test says so: nothing here waits for time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fermi.engine.blocks import PoolStats
from fermi.engine.event import Event, TokenLogprobs
from fermi.engine.sampling import Sampling
from fermi.engine.scheduler import SchedulerStats
from fermi.engine.sequence import Request
from fermi.engine.service import Service
from fermi.engine.stream import Stream
from fermi.errors import EngineDownError, EngineError, QueueFullError, RequestError


class ScriptedEngine:
    """Gives every sequence one token per permitted step: 0, 1, 2, … and ends it at max_tokens."""

    def __init__(self, free: bool = False) -> None:
        self.permits = threading.Semaphore(0)
        self.free = free  # steps need no permit
        self.requests: dict[str, Request] = {}
        self.given: dict[tuple[str, int], int] = {}
        self.aborted: list[tuple[str, int | None]] = []
        self.aborts = threading.Semaphore(0)
        self.stepped = threading.Semaphore(0)
        self.events: list[Event] = []
        self.failure: BaseException | None = None
        self.resets: list[BaseException | None] = []  # what the next ones raise
        self.resetting = threading.Semaphore(0)
        self.may_reset = threading.Semaphore(0)
        self.threads: set[int] = set()
        self.running_limit = 1000

    @property
    def has_work(self) -> bool:
        return bool(self.given or self.events)

    def check(self, request: Request) -> None:
        if not request.prompt_token_ids:
            raise RequestError("the prompt is empty", param="prompt")

    def add(self, request: Request) -> None:
        self.threads.add(threading.get_ident())
        if request.id.startswith("refused"):
            raise RequestError("refused")
        self.requests[request.id] = request
        for index in range(request.sampling.n):
            self.given[request.id, index] = 0

    def abort(self, request_id: str, index: int | None = None) -> None:
        self.aborted.append((request_id, index))
        for key in [key for key in self.given if key[0] == request_id and index in (None, key[1])]:
            del self.given[key]
            self.events.append(Event(*key, finish_reason="abort"))
        self.aborts.release()

    def abort_all(self) -> None:
        for request_id in {key[0] for key in self.given}:
            self.abort(request_id)

    def step(self) -> list[Event]:
        self.threads.add(threading.get_ident())
        if self.given and not self.free:
            self.permits.acquire()
        if self.failure is not None:
            raise self.failure
        events, self.events = self.events, []
        for key in list(self.given)[: self.running_limit]:
            event = Event(*key, token_ids=[self.given[key]])
            self.given[key] += 1
            if self.given[key] == self.requests[key[0]].sampling.max_tokens:
                event.finish_reason = "length"
                del self.given[key]
            events.append(event)
        self.stepped.release()
        return events

    def reset(self) -> None:
        self.resetting.release()
        self.may_reset.acquire()
        failure = self.resets.pop(0)
        if failure is not None:
            raise failure
        self.given, self.events, self.failure = {}, [], None

    def stats(self) -> SchedulerStats:
        running = min(len(self.given), self.running_limit)
        waiting = len(self.given) - running
        return SchedulerStats(running, waiting, 4 * waiting, 0, 0, 0, 0, PoolStats(1, 1, 0, 0, 0, 0, 0))


def request(name: str, max_tokens: int = 3, n: int = 1) -> Request:
    return Request(id=name, prompt_token_ids=[1, 2, 3, 4], sampling=Sampling(max_tokens=max_tokens, n=n))


@asynccontextmanager
async def running(engine: ScriptedEngine, **options: Any) -> AsyncIterator[Service]:
    service = Service(engine, **options)
    service.start()
    try:
        yield service
    finally:
        engine.free = True
        engine.permits.release(1000)
        await service.stop()


async def read(stream: Stream) -> list[Event]:
    return [event async for event in stream]


def tokens_of(events: list[Event], index: int = 0) -> list[int]:
    return [token for event in events if event.index == index for token in event.token_ids]


async def acquired(semaphore: threading.Semaphore) -> None:
    await asyncio.get_running_loop().run_in_executor(None, semaphore.acquire)


async def test_streams_give_the_events_of_their_requests() -> None:
    async with running(ScriptedEngine(free=True)) as service:
        streams = [service.submit(request(f"r{number}", 5 + number, n=2)) for number in range(4)]
        for number, events in enumerate(await asyncio.gather(*map(read, streams))):
            for index in range(2):
                assert tokens_of(events, index) == list(range(5 + number))
            assert sum(event.finish_reason == "length" for event in events) == 2
        assert service.open_requests == 0


async def test_the_engine_is_only_touched_by_its_thread() -> None:
    engine = ScriptedEngine(free=True)
    async with running(engine) as service:
        await read(service.submit(request("r")))
        assert engine.threads == {service._thread.ident}
        assert threading.get_ident() not in engine.threads


async def test_events_that_are_not_read_join() -> None:
    engine = ScriptedEngine()
    async with running(engine) as service:
        stream = service.submit(request("r", 4))
        engine.permits.release(4)
        for _ in range(4):
            await acquired(engine.stepped)
        while service.open_requests:
            await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)
        (event,) = await read(stream)
        assert event.token_ids == [0, 1, 2, 3]
        assert event.finish_reason == "length"


async def test_one_wake_up_serves_all_requests_of_a_step() -> None:
    engine = ScriptedEngine()
    async with running(engine) as service:
        loop = asyncio.get_running_loop()
        wakes = 0
        original = loop.call_soon_threadsafe

        def counted(callback: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            nonlocal wakes
            wakes += "Outbox" in getattr(callback, "__qualname__", "")
            return original(callback, *arguments, **options)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        try:
            streams = [service.submit(request(f"r{number}", 2)) for number in range(8)]
            engine.permits.release(1000)
            await asyncio.gather(*map(read, streams))
        finally:
            del loop.call_soon_threadsafe  # type: ignore[attr-defined]
        assert 1 <= wakes <= 2 + 8  # at most one each step; steps before all have arrived serve some


async def test_cancel_aborts_in_the_engine_and_ends_the_iteration() -> None:
    engine = ScriptedEngine()
    async with running(engine) as service:
        stream = service.submit(request("r", 100))
        other = service.submit(request("other", 2))
        engine.permits.release(1)
        await anext(stream)
        reader = asyncio.ensure_future(read(stream))
        await asyncio.sleep(0)
        stream.cancel()
        assert await reader == []
        engine.permits.release(5)
        assert tokens_of(await read(other)) == [0, 1]
        await acquired(engine.aborts)
        assert engine.aborted == [("r", None)]
        stream.cancel()
        assert engine.aborted == [("r", None)]


async def test_one_sequence_can_be_cancelled() -> None:
    engine = ScriptedEngine()
    async with running(engine) as service:
        stream = service.submit(request("r", 3, n=2))
        stream.cancel(1)
        engine.permits.release(10)
        events = await read(stream)
        assert tokens_of(events, 0) == [0, 1, 2]
        assert tokens_of(events, 1) == []
        assert ("r", 1) in engine.aborted


async def test_leaving_the_context_cancels() -> None:
    engine = ScriptedEngine()
    async with running(engine) as service:
        async with service.submit(request("r", 100)):
            pass
        engine.permits.release(2)
        await acquired(engine.aborts)
        assert engine.aborted == [("r", None)]


async def test_a_full_queue_refuses_and_says_when_to_try_again() -> None:
    engine = ScriptedEngine()
    engine.running_limit = 2
    async with running(engine, max_running=2, max_queued_requests=3) as service:
        streams = [service.submit(request(f"r{number}")) for number in range(5)]
        with pytest.raises(QueueFullError) as caught:
            service.submit(request("late"))
        assert caught.value.retry_after >= 1
        engine.permits.release(1000)
        await asyncio.gather(*map(read, streams))
        assert tokens_of(await read(service.submit(request("late")))) == [0, 1, 2]


async def test_the_queue_is_bounded_in_tokens_too() -> None:
    engine = ScriptedEngine()
    async with running(engine, max_running=1, max_queued_tokens=10) as service:
        for name in ("runs", "waits"):
            service.submit(request(name))
        with pytest.raises(QueueFullError):
            service.submit(request("late"))


async def test_wrong_requests_are_refused_at_once() -> None:
    engine = ScriptedEngine()
    async with running(engine) as service:
        with pytest.raises(RequestError, match="empty"):
            service.submit(Request(id="r", prompt_token_ids=[], sampling=Sampling()))
        service.submit(request("twice"))
        with pytest.raises(RequestError, match="twice"):
            service.submit(request("twice"))


async def test_what_the_engine_refuses_ends_with_an_error() -> None:
    async with running(ScriptedEngine(free=True)) as service:
        (event,) = await read(service.submit(request("refused")))
        assert (event.finish_reason, event.error) == ("error", "refused")
        assert tokens_of(await read(service.submit(request("r")))) == [0, 1, 2]


async def test_a_dead_engine_ends_every_stream(caplog: pytest.LogCaptureFixture) -> None:
    engine = ScriptedEngine()
    async with running(engine) as service:
        streams = [service.submit(request(f"r{number}", 9, n=2)) for number in range(3)]
        engine.permits.release(1)
        await anext(streams[0])
        engine.failure = MemoryError("nothing left")
        engine.permits.release(1)
        for events in await asyncio.gather(*map(read, streams)):
            ends = [event for event in events if event.finish_reason]
            assert [event.index for event in ends] == [0, 1]
            assert all(event.finish_reason == "error" and "nothing left" in (event.error or "") for event in ends)
        assert not service.ready
        with pytest.raises(EngineDownError):
            service.submit(request("late"))


async def test_a_crashed_engine_starts_anew() -> None:
    engine = ScriptedEngine()
    async with running(engine, max_restarts=2) as service:
        for crash in range(3):  # none of them in a row with another
            streams = [service.submit(request(f"r{number}", 9)) for number in range(3)]
            engine.failure = SystemError("what nobody foresaw")
            engine.resets = [None]
            engine.permits.release(1)
            for events in await asyncio.gather(*map(read, streams)):
                assert [event.finish_reason for event in events] == ["error"]
            await acquired(engine.resetting)
            assert not service.ready
            with pytest.raises(EngineDownError):
                service.submit(request("early"))
            engine.may_reset.release()
            while not service.ready:
                await asyncio.sleep(0)
            assert service.restarts == crash + 1
            engine.permits.release(3)
            assert tokens_of(await read(service.submit(request("next")))) == [0, 1, 2]


@pytest.mark.parametrize("at_reset", [False, True])
async def test_crashes_in_a_row_are_bounded(at_reset: bool) -> None:
    engine = ScriptedEngine(free=True)
    service = Service(engine, max_restarts=2)
    service.start()
    for _ in range(1 if at_reset else 3):
        engine.failure = SystemError("again")
        engine.resets = [SystemError("not now")] * 2 if at_reset else [None]
        [event] = await read(service.submit(request("r")))
        assert event.finish_reason == "error"
        engine.may_reset.release(2)
        while not service.ready and service.alive:
            await asyncio.sleep(0)
    assert not service.ready
    assert service.restarts == (0 if at_reset else 2)
    await service.stop()


async def test_stop_does_not_wait_for_a_crashed_engine() -> None:
    engine = ScriptedEngine(free=True)
    service = Service(engine, max_restarts=1)
    service.start()
    engine.failure, engine.resets = SystemError("once"), [None]
    await read(service.submit(request("r")))
    await acquired(engine.resetting)
    stopping = asyncio.ensure_future(service.stop())
    engine.may_reset.release()
    await stopping
    assert not service.alive


async def test_stop_lets_requests_finish() -> None:
    engine = ScriptedEngine(free=True)
    service = Service(engine)
    service.start()
    stream = service.submit(request("r", 50))
    reader = asyncio.ensure_future(read(stream))
    await service.stop(drain_s=600)
    assert tokens_of(await reader) == list(range(50))
    assert not service.ready
    with pytest.raises(EngineError):
        service.submit(request("late"))


async def test_stop_aborts_what_does_not_finish() -> None:
    engine = ScriptedEngine()
    service = Service(engine)
    service.start()
    stream = service.submit(request("r", 50))
    reader = asyncio.ensure_future(read(stream))
    stopping = asyncio.ensure_future(service.stop())
    engine.permits.release(1000)
    await stopping
    events = await reader
    assert events[-1].finish_reason in ("abort", "length")
    assert not service._thread.is_alive()


async def test_stop_before_start() -> None:
    await Service(ScriptedEngine()).stop()


async def test_nothing_is_accepted_before_start() -> None:
    with pytest.raises(EngineError, match="is not running"):
        Service(ScriptedEngine()).submit(request("r"))


async def test_an_idle_service_waits_without_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(free=True)
    async with running(engine) as service:
        waits: list[float | None] = []
        waited = threading.Semaphore(0)
        original = service._condition.wait

        def wait(timeout: float | None = None) -> bool:
            waits.append(timeout)
            waited.release()
            return original(timeout)

        monkeypatch.setattr(service._condition, "wait", wait)
        await read(service.submit(request("r")))
        await acquired(waited)
        assert waits
        assert set(waits) == {None}


def test_readers_of_a_closed_loop_are_dropped() -> None:
    engine = ScriptedEngine()
    service = Service(engine)
    service.start()

    async def leave() -> None:
        service.submit(request("gone", 100))

    asyncio.run(leave())
    engine.permits.release(1)
    assert engine.aborts.acquire(timeout=60)
    assert engine.aborted == [("gone", None)]

    async def again() -> list[Event]:
        engine.permits.release(1000)
        events = await read(service.submit(request("r")))
        await service.stop()
        return events

    assert tokens_of(asyncio.run(again())) == [0, 1, 2]


def events_of(pieces: list[list[int]]) -> Iterator[Event]:
    for place, tokens in enumerate(pieces):
        yield Event(
            "r",
            0,
            tokens,
            logprobs=[TokenLogprobs(token, -1.0, 1, []) for token in tokens],
            prompt_logprobs=[None] if place == 0 else None,
            finish_reason="stop" if place == len(pieces) - 1 else None,
            stop_token_id=tokens[-1] if place == len(pieces) - 1 else None,
        )


async def test_joined_events_lose_nothing() -> None:
    stream = Stream(request("r"), lambda *_: None)
    for event in events_of([[1], [2, 3], [4]]):
        stream.receive(event)
    (event,) = await read(stream)
    assert event.token_ids == [1, 2, 3, 4]
    assert [entry.token_id for entry in event.logprobs or []] == [1, 2, 3, 4]
    assert event.prompt_logprobs == [None]
    assert (event.finish_reason, event.stop_token_id) == ("stop", 4)
