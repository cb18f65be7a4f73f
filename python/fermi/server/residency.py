"""Which models are in memory: loaded when they are asked for, unloaded when they are idle and their room is needed."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

import psutil

from fermi.errors import CheckpointError, ConfigError, DeadlineError, EngineError, FermiError, HubError, RequestError
from fermi.server.errors import NotReadyError
from fermi.server.log import logger
from fermi.server.registry import Entry, Registry, Resident
from fermi.server.served import Served, Service

Result = TypeVar("Result")

RETRY_S = 5.0  # when another model may be idle


class Timer(Protocol):
    """What ``call_later`` gives."""

    def cancel(self) -> None: ...


class Residency:
    """Brings the models of a registry into memory and lets them go; for one event loop.

    Whoever takes a model keeps it in memory until its task ends. A model that runs requests is never unloaded: it is
    waited for. Loading and unloading happen in threads. One timer at most waits, for the next model whose idle time is
    over, and none where ``keep_alive_s`` is 0.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        on_demand: bool = False,
        keep_alive_s: float = 0.0,
        memory: int | float | None = None,
        clock: Callable[[], float] | None = None,
        later: Callable[[float, Callable[[], None]], Timer] | None = None,
    ) -> None:
        """
        Args:
            on_demand: a request for a model that is not in memory loads it, rather than being refused.
            keep_alive_s: idle time after which a model leaves; 0: it stays.
            memory: bound of all models together: bytes (int) or a share of the machine's memory (float).
            clock, later: the event loop's ``time`` and ``call_later``.
        """
        self._registry = registry
        self._on_demand = on_demand
        self._keep_alive_s = keep_alive_s
        self._memory = int(memory * psutil.virtual_memory().total) if isinstance(memory, float) else memory
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._later = later or (lambda delay, call: asyncio.get_running_loop().call_later(delay, call))
        self._timer: Timer | None = None
        self._unsure = asyncio.Lock()
        self._waiting: list[asyncio.Future[None]] = []  # for a change
        self._draining: dict[Entry, Service] = {}  # of models on their way out
        self._stopped = False

    async def take(self, entry: Entry, timeout_s: float | None = None) -> Served:
        """The model, in memory at least until the running task ends.

        Raises:
            NotReadyError: it is not in memory and nothing loads it, or there can be no room for it.
            DeadlineError: the time was over before it was loaded; it is loaded nevertheless.
            EngineError: it cannot be loaded.
        """
        end = None if timeout_s is None else self._clock() + timeout_s
        while entry.resident is None:
            if entry.loading is None and not (self._on_demand and entry.load is not None):
                raise NotReadyError(
                    f"The model {entry.name!r} is not loaded: POST /v1/models/load loads it, and with openai.lazy a "
                    "request does.",
                    retry_after=RETRY_S,
                )
            loading = self._loading(entry)
            left = None if end is None else max(0.0, end - self._clock())
            entry.claims += 1
            try:
                done, _ = await asyncio.wait({loading}, timeout=left)
            finally:
                entry.claims -= 1
                self._changed()
            if not done:
                raise DeadlineError(f"The request's time was over before the model {entry.name!r} was loaded.")
            try:
                loading.result()
            except NotReadyError:
                raise
            except (FermiError, asyncio.CancelledError) as error:  # where its files are is not the client's business
                raise EngineError(f"The model {entry.name!r} cannot be loaded; the server's log says why.") from error
        resident = entry.resident
        resident.users += 1
        resident.unused.clear()
        task = asyncio.current_task()
        assert task is not None  # this is a coroutine
        task.add_done_callback(lambda _: self._release(resident))
        return resident.served

    async def survey(self) -> None:
        """Find out what can be known of the models that are not in memory."""
        for entry in self._registry.entries:
            if entry.survey is not None and entry.endpoints is None:
                facts = await in_thread(entry.survey)
                if facts is not None:
                    entry.expect(facts)

    async def load(self, entry: Entry) -> None:
        """Bring a model into memory, for its operator.

        Raises:
            RequestError: it cannot be loaded; says why.
            NotReadyError: there can be no room for it.
            EngineError: loading failed in a way that nobody foresaw.
        """
        if entry.resident is None:
            loading = self._loading(entry)
            await asyncio.wait({loading})
            try:
                loading.result()
            except (ConfigError, HubError, CheckpointError) as error:
                message = f"The model {entry.name!r} cannot be loaded: {error}"
                raise RequestError(message, param="model", code="model_not_loaded") from error

    async def unload(self, entry: Entry) -> None:
        """Give back what a model takes as soon as nothing runs on it; until then it takes nothing new."""
        if entry.loading is not None:
            await asyncio.wait({entry.loading})
        if entry.resident is not None:
            self._send_off(entry)
        if entry.leaving is not None:
            await asyncio.wait({entry.leaving})

    async def stop(self) -> None:
        """End every model; what runs ends with an error."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for service in [*(model.service for model in self._registry), *self._draining.values()]:
            await service.stop()

    def watch(self) -> None:
        """Wait for the idle time of the models in memory to be over."""
        if not self._keep_alive_s or self._timer is not None or self._stopped:
            return
        ends = [resident.last_used + self._keep_alive_s for _, resident in self._idle()]
        if ends:
            self._timer = self._later(max(0.0, min(ends) - self._clock()), self._expire)

    # Who uses what

    def _release(self, resident: Resident) -> None:
        resident.users -= 1
        resident.last_used = self._clock()
        if not resident.users:
            resident.unused.set()
            self.watch()
            self._changed()

    def _idle(self) -> Iterator[tuple[Entry, Resident]]:
        """Models that no task uses and that can be loaded again."""
        for entry in self._registry.entries:
            if entry.resident is not None and entry.load is not None and not entry.resident.users:
                yield entry, entry.resident

    def _expire(self) -> None:
        """Let the models go whose idle time is over."""
        self._timer = None
        now = self._clock()
        for entry, resident in list(self._idle()):
            if not resident.idle:  # a request goes on after the task that asked for it
                resident.last_used = now
            elif resident.last_used + self._keep_alive_s <= now:
                self._send_off(entry)
        self.watch()

    # Coming

    def _loading(self, entry: Entry) -> asyncio.Task[None]:
        """The one task that loads a model, for all who wait for it."""
        if entry.loading is None:
            entry.loading = asyncio.ensure_future(self._load(entry))
            entry.loading.add_done_callback(_seen)
        return entry.loading

    async def _load(self, entry: Entry) -> None:
        try:
            if entry.leaving is not None:
                await asyncio.wait({entry.leaving})
            if entry.memory is None and self._memory is not None:
                # One at a time of those whose size is only known when they are there, so that none waits for another.
                async with self._unsure:
                    await self._bring(entry, 0 if entry.weigh is None else await in_thread(entry.weigh))
            else:
                await self._bring(entry, entry.memory or 0)
        except NotReadyError:
            raise
        except FermiError as error:
            logger().error("the model cannot be loaded", model=entry.name, error=str(error))
            raise
        except Exception as error:
            logger().exception("the model cannot be loaded", model=entry.name, error=repr(error))
            raise EngineError(f"Loading failed: {type(error).__name__}") from error
        finally:
            entry.loading, entry.reserved = None, 0
            self._changed()
        self.watch()

    async def _bring(self, entry: Entry, expected: int) -> None:
        """Make room for so many bytes, load, and make sure that it fits."""
        assert entry.load is not None  # else it would be in memory
        await self._make_room(entry, expected, loaded=False)
        logger().info("loading a model", model=entry.name)
        served = await in_thread(entry.load)
        try:
            if self._stopped:
                raise NotReadyError("The server is shutting down.", retry_after=RETRY_S)
            entry.memory = served.memory
            await self._make_room(entry, served.memory, loaded=True)
        except BaseException:
            await served.service.stop()
            del served
            await in_thread(gc.collect)
            raise
        entry.enter(served, self._clock())
        logger().info("model loaded", model=entry.name, memory_mb=round(served.memory / 2**20, 1))

    async def _make_room(self, entry: Entry, needed: int, *, loaded: bool) -> None:
        """Keep so many bytes for a model; others leave for it when nothing runs on them, the idle ones first.

        What others work on is waited for. ``loaded``: it is there already, and only now its size is certain.
        NotReadyError, and none has left, where there can never be the room.
        """
        if self._memory is None:
            return
        others = [each for each in self._registry.entries if each is not entry]
        while True:
            leaving = self._leaving_for(needed, others)
            if leaving is not None:
                break
            staying = sum(each.memory or 0 for each in others if each.resident and each.load is None)
            coming = any(
                each.resident or each.leaving or (each.reserved if loaded else each.loading) for each in others
            )
            if needed + staying > self._memory or not coming:
                raise NotReadyError(
                    f"There is no room for the model {entry.name!r}: it takes {_size(needed)}, and "
                    f"openai.max_loaded_memory is {_size(self._memory)}.",
                    retry_after=RETRY_S,
                )
            await self._change()
        entry.reserved = needed
        for other in leaving:
            self._send_off(other)
        held = sum(each.reserved or (each.memory or 0 if each.resident or each.leaving else 0) for each in others)
        goings = {each.leaving for each in others if each.leaving is not None}
        if goings and held + needed > self._memory:
            await asyncio.wait(goings)

    def _leaving_for(self, needed: int, others: Sequence[Entry]) -> list[Entry] | None:
        """Which models leave so that there are so many bytes: the idle before those at work, the least recently used
        first. None where that is not enough for now."""
        assert self._memory is not None
        taken = sum(each.reserved + (each.memory or 0 if each.resident else 0) for each in others)
        may_leave: list[tuple[bool, float, Entry]] = []
        for each in others:
            if each.resident is not None and each.load is not None and not each.claims:
                may_leave.append((not each.resident.idle, each.resident.last_used, each))
        leaving: list[Entry] = []
        for _, _, each in sorted(may_leave, key=lambda one: one[:2]):
            if taken + needed > self._memory:
                leaving.append(each)
                taken -= each.memory or 0
        return leaving if taken + needed <= self._memory else None

    async def _change(self) -> None:
        """Wait until a model has come or gone, or has one user less."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def _changed(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    # Going

    def _send_off(self, entry: Entry) -> None:
        """Take a model out of service, and give its memory back when what runs on it has ended."""
        resident, entry.resident = entry.resident, None
        assert resident is not None
        logger().info("unloading a model", model=entry.name)
        entry.leaving = asyncio.ensure_future(self._leave(entry, resident))

    async def _leave(self, entry: Entry, resident: Resident) -> None:
        service = resident.served.service
        self._draining[entry] = service
        try:
            await resident.unused.wait()
            await service.stop(drain_s=threading.TIMEOUT_MAX)
        finally:
            del self._draining[entry]
            entry.leaving = None
            self._changed()
        del resident, service
        await in_thread(gc.collect)  # recordings and runners refer to each other
        logger().info("model unloaded", model=entry.name)


async def in_thread(work: Callable[[], Result]) -> Result:
    """Do work in a thread of its own, which does not keep the process alive."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="fermi-load", daemon=True).start()
    return await future


def _seen(task: asyncio.Task[None]) -> None:
    """Its failure is told to those who wait, of whom there may be none."""
    if not task.cancelled():
        task.exception()


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
