"""The embedding service with a model that encodes when the test says so: nothing here waits for time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from engine.toy_encoder import ToyEncoder, row, sequence_of, sequences_of
from fermi.engine.embedder import Embedder
from fermi.engine.embedding_service import MOST_FAILURES, EmbeddingService
from fermi.errors import ContextLengthError, EngineDownError, EngineError, QueueFullError, RequestError


@asynccontextmanager
async def running(model: ToyEncoder, *, budget: int = 16, **options: Any) -> AsyncIterator[EmbeddingService]:
    service = EmbeddingService(Embedder(model, max_batch_tokens=budget), **options)
    service.start()
    try:
        yield service
    finally:
        model.free = True
        model.permits.release(1000)
        await service.stop()


async def acquired(semaphore: threading.Semaphore) -> None:
    await asyncio.get_running_loop().run_in_executor(None, semaphore.acquire)


async def test_every_request_gets_its_rows_in_order() -> None:
    model = ToyEncoder()
    async with running(model) as service:
        requests = [sequences_of(*range(1, 3 + number)) for number in range(12)]
        results = await asyncio.gather(*[service.submit(request) for request in requests])
        for request, rows in zip(requests, results, strict=True):
            assert rows.dtype == np.float32
            assert rows.tolist() == [row(each) for each in request]
        assert service.open_requests == 0
        stats = service.stats
        assert (stats.waiting, stats.waiting_tokens) == (0, 0)
        assert stats.sequences == sum(map(len, requests))
        assert stats.tokens == sum(len(each.token_ids) for request in requests for each in request)
        assert stats.batches == len(model.batches)
        assert model.threads == {service._thread.ident}


async def test_an_empty_request_has_no_rows() -> None:
    async with running(ToyEncoder()) as service:
        assert (await service.submit([])).shape == (0, 4)


async def test_requests_share_batches_each_in_turn() -> None:
    """A request of one sequence does not wait for the many of another that came before it."""
    model = ToyEncoder(free=False)
    async with running(model, budget=16) as service:
        first = service.submit([sequence_of(*[1] * 16)])
        await acquired(model.entered)  # the batch of the first is running; the others queue
        many = service.submit([sequence_of(*[2] * 4)] * 12)
        one = service.submit([sequence_of(*[3] * 4)])
        model.permits.release(2)
        assert (await first).tolist() == [[16, 16, 0, 1]]
        assert (await one).tolist() == [[4, 12, 0, 1]]
        assert not many.done()
        model.permits.release(100)
        assert (await many).tolist() == [[4, 8, 0, 1]] * 12
        owners = [[each.token_ids[0] for each in batch] for batch in model.batches]
        assert owners == [[1], [2, 3, 2, 2], [2] * 4, [2] * 4, [2]]


async def test_the_longest_sequences_of_a_request_come_first() -> None:
    model = ToyEncoder()
    async with running(model, budget=12) as service:
        await service.submit(sequences_of(1, 10, 3, 2, 9, 4))
        assert model.lengths == [[10], [9], [4, 3, 2, 1]]


async def test_a_cancelled_request_drops_what_has_not_begun() -> None:
    model = ToyEncoder(free=False)
    async with running(model, budget=4) as service:
        leaving = service.submit(sequences_of(4, 4, 4, 4))
        await acquired(model.entered)
        staying = service.submit([sequence_of(7)])
        leaving.cancel()
        await asyncio.sleep(0)  # for the loop to tell the service
        assert leaving.cancelled()
        assert service.open_requests == 1
        model.permits.release(2)
        assert (await staying).tolist() == [[1, 7, 0, 1]]
        assert model.lengths == [[4], [1]]
        assert service.stats.waiting == 0


async def test_a_task_that_is_cancelled_leaves() -> None:
    model = ToyEncoder(free=False)
    async with running(model, budget=4) as service:

        async def ask() -> None:
            await service.submit(sequences_of(4, 4))

        task = asyncio.ensure_future(ask())
        await acquired(model.entered)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)  # for the loop to tell the service
        assert service.open_requests == 0


async def test_a_full_queue_refuses_and_says_when_to_try_again() -> None:
    model = ToyEncoder(free=False)
    async with running(model, budget=4, max_queued_requests=2) as service:
        futures = [service.submit(sequences_of(4))]
        await acquired(model.entered)
        futures += [service.submit(sequences_of(4)) for _ in range(2)]
        with pytest.raises(QueueFullError, match="2 requests wait") as caught:
            service.submit(sequences_of(4))
        assert 1 <= caught.value.retry_after <= 60
        model.permits.release(100)
        await asyncio.gather(*futures)
        await service.submit(sequences_of(4))


async def test_the_queue_is_bounded_in_tokens_but_takes_one_request_of_any_size() -> None:
    model = ToyEncoder(free=False)
    async with running(model, budget=4, max_queued_tokens=10) as service:
        running_one = service.submit(sequences_of(4))
        await acquired(model.entered)
        large = service.submit(sequences_of(4, 4, 4))
        with pytest.raises(QueueFullError):
            service.submit(sequences_of(1))
        model.permits.release(100)
        await asyncio.gather(running_one, large)


async def test_what_a_token_takes_says_when_to_try_again() -> None:
    now = [0.0]
    model = ToyEncoder(free=False)
    async with running(model, budget=4, max_queued_requests=1, clock=lambda: now[0]) as service:
        running_one = service.submit(sequences_of(4, 4))
        await acquired(model.entered)
        now[0] += 40.0
        model.permits.release(1)
        await acquired(model.entered)
        waiting = service.submit(sequences_of(*[4] * 10))
        with pytest.raises(QueueFullError) as caught:
            service.submit(sequences_of(4))
        assert caught.value.retry_after == pytest.approx(40 * 10 / 16, rel=0.01)
        model.permits.release(100)
        await asyncio.gather(running_one, waiting)


async def test_wrong_requests_are_refused_at_once() -> None:
    model = ToyEncoder(max_seq_length=8)
    async with running(model) as service:
        with pytest.raises(ContextLengthError):
            service.submit(sequences_of(9))
        with pytest.raises(RequestError, match="no tokens"):
            service.submit([sequence_of()], param="query")
        assert not model.batches


async def test_a_batch_that_fails_ends_its_requests_and_no_other() -> None:
    model = ToyEncoder(free=False)
    async with running(model, budget=4) as service:
        failing = service.submit(sequences_of(4, 4, 4))
        await acquired(model.entered)
        model.failure = ValueError("a bad batch")
        model.permits.release(1)
        with pytest.raises(EngineError, match="a bad batch"):
            await failing
        model.failure = None
        model.permits.release(100)
        assert (await service.submit([sequence_of(5)])).tolist() == [[1, 5, 0, 1]]
        assert service.ready
        assert model.lengths == [[4], [1]]


async def test_a_dead_thread_ends_every_request() -> None:
    model = ToyEncoder(free=False)
    async with running(model, budget=4) as service:
        futures = [service.submit(sequences_of(4, 4)) for _ in range(3)]
        await acquired(model.entered)
        model.failure = SystemExit("nothing left")
        model.permits.release(1)
        for future in futures:
            with pytest.raises(EngineError, match="nothing left"):
                await future
        assert not service.ready
        assert service.open_requests == 0
        with pytest.raises(EngineDownError):
            service.submit(sequences_of(4))


async def test_a_crashed_thread_starts_anew() -> None:
    model = ToyEncoder()
    async with running(model, max_restarts=1) as service:
        for crash in range(2):
            model.failure = SystemExit("nothing left")
            with pytest.raises(EngineError, match="nothing left"):
                await service.submit(sequences_of(4))
            model.failure = None
            while not service.ready:
                await asyncio.sleep(0)
            assert (await service.submit(sequences_of(4))).shape == (1, 4)
            assert service.restarts == crash + 1


async def test_batches_that_keep_failing_are_a_crash() -> None:
    model = ToyEncoder()
    async with running(model, max_restarts=1) as service:
        model.failure = ValueError("the device is gone")
        for _ in range(2 * MOST_FAILURES):
            with pytest.raises(EngineError):
                await service.submit(sequences_of(4))
            while service.alive and not service.ready:
                await asyncio.sleep(0)
        assert not service.ready
        assert service.restarts == 1


async def test_stop_lets_requests_finish() -> None:
    service = EmbeddingService(Embedder(ToyEncoder(), max_batch_tokens=4))
    service.start()
    future = service.submit(sequences_of(*[4] * 40))
    await service.stop(drain_s=600)
    assert (await future).shape == (40, 4)
    assert not service.ready
    with pytest.raises(EngineError, match="is not running"):
        service.submit(sequences_of(4))


async def test_stop_ends_what_does_not_finish() -> None:
    model = ToyEncoder(free=False)
    service = EmbeddingService(Embedder(model, max_batch_tokens=4))
    service.start()
    future = service.submit(sequences_of(4, 4, 4))
    await acquired(model.entered)
    stopping = asyncio.ensure_future(service.stop())
    await asyncio.sleep(0)
    with service._condition:
        service._condition.wait_for(lambda: service._stopping)
    model.permits.release(1)
    await stopping
    with pytest.raises(EngineError, match="stops"):
        await future
    assert not service._thread.is_alive()
    assert len(model.batches) == 1


async def test_stop_before_start() -> None:
    await EmbeddingService(Embedder(ToyEncoder())).stop()


async def test_one_wake_up_serves_all_requests_of_a_batch() -> None:
    model = ToyEncoder(free=False)
    async with running(model, budget=64) as service:
        loop = asyncio.get_running_loop()
        first = service.submit(sequences_of(1))
        await acquired(model.entered)
        others = [service.submit(sequences_of(1, 2)) for _ in range(8)]
        wakes = 0
        original = loop.call_soon_threadsafe

        def counted(callback: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal wakes
            wakes += getattr(callback, "__name__", "") == "_settle"
            return original(callback, *arguments, **options)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        try:
            model.permits.release(2)
            await asyncio.gather(first, *others)
        finally:
            del loop.call_soon_threadsafe  # type: ignore[attr-defined]
        assert wakes == 2
        assert len(model.batches) == 2


async def test_an_idle_service_waits_without_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(ToyEncoder()) as service:
        waits: list[float | None] = []
        waited = threading.Semaphore(0)
        original = service._condition.wait

        def wait(timeout: float | None = None) -> bool:
            waits.append(timeout)
            waited.release()
            return original(timeout)

        monkeypatch.setattr(service._condition, "wait", wait)
        await service.submit(sequences_of(4))
        await acquired(waited)
        assert waits
        assert set(waits) == {None}


def test_requests_of_a_closed_loop_are_dropped() -> None:
    model = ToyEncoder(free=False)
    service = EmbeddingService(Embedder(model, max_batch_tokens=4))
    service.start()

    async def leave() -> None:
        service.submit(sequences_of(4, 4, 4, 4))
        await acquired(model.entered)

    asyncio.run(leave())
    model.permits.release(1)

    async def again() -> list[list[float]]:
        model.free = True
        model.permits.release(100)
        rows = await service.submit([sequence_of(5)])
        await service.stop()
        return rows.tolist()

    assert asyncio.run(again()) == [[1, 5, 0, 1]]
    assert model.lengths == [[4], [1]]
    assert service.open_requests == 0
