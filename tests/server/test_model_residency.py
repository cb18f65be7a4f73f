"""Which models are in memory, by a clock and timers that the test moves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

import pytest

from fermi.errors import CheckpointError, DeadlineError, EngineError, RequestError
from fermi.server.errors import NotReadyError
from fermi.server.registry import Entry, Registry
from fermi.server.residency import Residency
from fermi.server.served import ServedModel
from server.toy import ScriptedService, byte_tokenizer, toy_model


@pytest.fixture(autouse=True)
def _without_looking_for_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is much of it in a process of tests."""
    monkeypatch.setattr("fermi.server.residency.gc.collect", lambda: 0)


@dataclass
class StoppableService(ScriptedService):
    """Knows that it was stopped; a stop waits until nothing is open."""

    stopped: bool = False
    open_work: int = 0

    @property
    def open_requests(self) -> int:
        return self.open_work

    async def stop(self, drain_s: float = 0.0) -> None:
        self.stopped = True


@dataclass
class Source:
    """What loads a model; ``gate`` holds the loading thread up until it is set."""

    name: str
    memory: int = 100
    weight: int = 0
    failures: list[BaseException] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    loaded: list[ServedModel] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()
        self.entry = Entry(self.name, load=self.load, weigh=lambda: self.weight)

    def load(self) -> ServedModel:
        assert self.gate.wait(30)
        if self.failures:
            raise self.failures.pop()
        served = replace(toy_model(name=self.name), service=StoppableService(byte_tokenizer()), memory=self.memory)
        self.loaded.append(served)
        return served

    @property
    def services(self) -> list[StoppableService]:
        return [model.service for model in self.loaded if isinstance(model.service, StoppableService)]


@dataclass
class Timer:
    due: float
    call: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class House:
    """A residency of some sources, with the test's own time."""

    def __init__(self, *sources: Source, **options: object) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.registry = Registry()
        for source in sources:
            self.registry.add(source.entry)
        options = {"on_demand": True, **options}
        self.residency = Residency(self.registry, clock=lambda: self.now, later=self.later, **options)  # type: ignore[arg-type]

    def later(self, delay: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + delay, call))
        return self.timers[-1]

    async def pass_time(self, seconds: float) -> None:
        """Let the timers fire that are due by then, and what they began come to its end."""
        self.now += seconds
        due = [timer for timer in self.timers if timer.due <= self.now and not timer.cancelled]
        self.timers = [timer for timer in self.timers if timer not in due]
        for timer in due:
            timer.call()
        await self.settled()

    async def settled(self) -> None:
        for entry in self.registry.entries:
            if entry.leaving is not None:
                await asyncio.wait({entry.leaving})

    async def loaded(self) -> None:
        """No load goes on, one that nobody waits for included."""
        for entry in self.registry.entries:
            if entry.loading is not None:
                await asyncio.wait({entry.loading})

    async def use(self, source: Source, timeout_s: float | None = None) -> ServedModel:
        """A request that takes a model and ends at once."""
        task = asyncio.ensure_future(self.residency.take(source.entry, timeout_s))
        served = await task
        await asyncio.sleep(0)  # for what is done when a task ends
        assert isinstance(served, ServedModel)
        return served

    async def begin(self, source: Source) -> tuple[asyncio.Task[None], asyncio.Event]:
        """A request that takes a model and keeps it until the event is set."""
        taken, end = asyncio.Event(), asyncio.Event()

        async def request() -> None:
            await self.residency.take(source.entry)
            taken.set()
            await end.wait()

        task = asyncio.ensure_future(request())
        await asyncio.wait({asyncio.ensure_future(taken.wait()), task}, return_when=asyncio.FIRST_COMPLETED)
        return task, end


async def until(condition: Callable[[], object]) -> None:
    """Let the others run until it is so."""
    while not condition():
        await asyncio.sleep(0)


async def test_requests_for_the_same_model_share_one_load() -> None:
    source = Source("a")
    source.gate.clear()
    house = House(source)
    requests = [asyncio.ensure_future(house.use(source)) for _ in range(5)]
    await until(lambda: source.entry.condition == "loading")
    source.gate.set()
    models = await asyncio.gather(*requests)
    assert len(source.loaded) == 1
    assert all(model is source.loaded[0] for model in models)
    assert source.entry.condition == "loaded"
    assert house.timers == []  # nothing to wait for


async def test_a_request_waits_no_longer_than_its_time_and_the_load_goes_on() -> None:
    source = Source("a")
    source.gate.clear()
    house = House(source)
    with pytest.raises(DeadlineError, match="before the model 'a' was loaded"):
        await house.use(source, timeout_s=0.0)
    source.gate.set()
    assert await house.use(source) is source.loaded[0]
    assert len(source.loaded) == 1


async def test_a_failed_load_is_told_and_tried_again() -> None:
    source, other = Source("a", failures=[CheckpointError("/secret/model: bad")]), Source("b")
    house = House(source, other)
    _, end = await house.begin(other)
    with pytest.raises(EngineError) as failed:
        await house.use(source)
    assert "cannot be loaded" in str(failed.value)
    assert "secret" not in str(failed.value)
    assert source.entry.condition == "unloaded"
    assert await house.use(source) is source.loaded[0]
    assert other.entry.condition == "loaded"
    end.set()


async def test_the_operator_is_told_why() -> None:
    source = Source("a", failures=[ZeroDivisionError("who knows"), CheckpointError("/models/a: bad")])
    house = House(source)
    with pytest.raises(RequestError, match="/models/a: bad"):
        await house.residency.load(source.entry)
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        await house.residency.load(source.entry)
    await house.residency.load(source.entry)
    assert source.entry.condition == "loaded"


async def test_without_loading_on_demand_a_request_is_refused() -> None:
    source = Source("a")
    house = House(source, on_demand=False)
    with pytest.raises(NotReadyError, match=r"openai\.lazy"):
        await house.use(source)
    await house.residency.load(source.entry)
    assert await house.use(source) is source.loaded[0]


async def test_an_idle_model_leaves_when_its_time_is_over() -> None:
    source = Source("a")
    house = House(source, keep_alive_s=10.0)
    await house.use(source)
    assert [timer.due for timer in house.timers] == [10.0]
    await house.pass_time(6)
    await house.use(source)  # at 6
    assert [timer.due for timer in house.timers] == [10.0]  # one timer, which finds that it is too early
    await house.pass_time(4)
    assert source.entry.condition == "loaded"
    assert [timer.due for timer in house.timers] == [16.0]
    await house.pass_time(6)
    assert source.entry.condition == "unloaded"
    assert source.services[0].stopped
    assert house.timers == []
    await house.use(source)
    assert len(source.loaded) == 2


async def test_a_model_at_work_stays() -> None:
    source = Source("a")
    house = House(source, keep_alive_s=10.0)
    task, end = await house.begin(source)
    await house.pass_time(50)
    assert source.entry.condition == "loaded"
    assert house.timers == []  # nobody waits for the end of what runs
    end.set()
    await task
    await asyncio.sleep(0)
    source.services[0].open_work = 1  # goes on after the task that asked for it
    await house.pass_time(10)
    assert source.entry.condition == "loaded"
    source.services[0].open_work = 0
    await house.pass_time(10)
    assert source.entry.condition == "unloaded"


async def test_the_least_recently_used_idle_model_leaves_for_another() -> None:
    a, b, c, d = sources = [Source(name) for name in "abcd"]
    house = House(*sources, memory=300)
    for at, source in enumerate([a, b, c, a]):
        house.now = at
        await house.use(source)
    await house.use(d)
    assert [source.entry.condition for source in sources] == ["loaded", "unloaded", "loaded", "loaded"]
    assert b.services[0].stopped
    task, end = await house.begin(c)
    house.now = 10
    await house.use(b)
    assert [source.entry.condition for source in sources] == ["unloaded", "loaded", "loaded", "loaded"]
    end.set()
    await task


async def test_work_in_flight_is_never_killed_for_room_but_waited_for() -> None:
    a, b = Source("a"), Source("b", weight=90)
    house = House(a, b, memory=150)
    task, end = await house.begin(a)
    waiting = asyncio.ensure_future(house.use(b))
    await until(lambda: a.entry.condition == "unloading")
    again = asyncio.ensure_future(house.use(a))  # comes after b, so that neither waits for ever
    await until(lambda: a.entry.claims)
    with pytest.raises(DeadlineError):
        await house.use(b, timeout_s=0.0)
    assert not a.services[0].stopped
    assert b.loaded == []
    end.set()
    await task
    assert await waiting is b.loaded[0]
    assert a.services[0].stopped
    assert await again is a.loaded[1]
    assert b.services[0].stopped


async def test_a_model_that_can_never_fit_leaves_the_others_alone() -> None:
    a, b = Source("a"), Source("b", memory=1000)
    house = House(a, b, memory=150)
    await house.use(a)
    with pytest.raises(NotReadyError, match="no room"):
        await house.use(b)
    assert b.services[0].stopped  # only when it was loaded its size was known
    assert (a.entry.condition, b.entry.condition) == ("loaded", "unloaded")
    with pytest.raises(NotReadyError, match="no room"):
        await house.use(b)
    assert len(b.loaded) == 1  # and is remembered


async def test_models_that_load_at_once_share_the_room() -> None:
    a, b = Source("a", weight=100), Source("b", weight=100)
    a.gate.clear()
    house = House(a, b, memory=150)
    first = asyncio.ensure_future(house.use(a))
    await until(lambda: a.entry.reserved)
    second = asyncio.ensure_future(house.use(b))
    await until(lambda: b.entry.claims)
    a.gate.set()
    assert await first is a.loaded[0]  # who waited for it gets it before it leaves
    assert await second is b.loaded[0]
    assert (len(a.loaded), a.services[0].stopped) == (1, True)


async def test_unloading_waits_for_what_runs_and_lets_new_requests_load_again() -> None:
    source = Source("a")
    house = House(source)
    task, end = await house.begin(source)
    unloading = asyncio.ensure_future(house.residency.unload(source.entry))
    await until(lambda: source.entry.condition == "unloading")
    again = asyncio.ensure_future(house.use(source))
    await until(lambda: source.entry.loading)
    assert not source.services[0].stopped
    end.set()
    await task
    await unloading
    assert source.services[0].stopped
    assert await again is source.loaded[1]
    await house.residency.unload(source.entry)
    await house.residency.unload(source.entry)  # nothing is left to do
    assert source.entry.condition == "unloaded"


async def test_the_end_stops_all_that_lives() -> None:
    a, b, c = Source("a"), Source("b"), Source("c")
    c.gate.clear()
    house = House(a, b, c, keep_alive_s=5.0)
    await house.use(a)
    task, end = await house.begin(b)
    unloading = asyncio.ensure_future(house.residency.unload(b.entry))
    late = asyncio.ensure_future(house.use(c))
    await until(lambda: b.entry.leaving and c.entry.loading)
    await house.residency.stop()
    assert a.services[0].stopped
    assert b.services[0].stopped
    assert all(timer.cancelled for timer in house.timers)
    c.gate.set()
    with pytest.raises(NotReadyError, match="shutting down"):
        await late
    assert c.services[0].stopped
    end.set()
    await task
    await unloading


@pytest.mark.parametrize("seed", range(8))
async def test_at_random(seed: int) -> None:
    """Whatever comes in whatever order: nothing leaves that is used, the bound holds, and every request ends."""
    random = Random(seed)
    sources = [Source(name, memory=random.randint(40, 120), weight=random.choice([0, 80])) for name in "abcd"]
    house = House(*sources, keep_alive_s=3.0, memory=260)
    ends: list[int] = []

    async def request(source: Source) -> None:
        if random.random() < 0.2:
            source.failures = [CheckpointError("bad")]
        try:
            served = await house.residency.take(source.entry, random.choice([None, 0.0, 5.0]))
        except (NotReadyError, EngineError, DeadlineError):
            ends.append(0)
            return
        service = served.service
        assert isinstance(service, StoppableService)
        for _ in range(random.randrange(6)):
            await asyncio.sleep(0)
            assert not service.stopped
        assert sum(each.entry.memory or 0 for each in sources if each.entry.resident) <= 260
        ends.append(1)

    tasks: list[asyncio.Future[None]] = []
    started = 0
    for turn in range(150):
        source = random.choice(sources)
        step = random.random()
        if turn % 10 == 9:
            await asyncio.gather(*tasks)
        if step < 0.7:
            started += 1
            tasks.append(asyncio.ensure_future(request(source)))
        elif step < 0.8:
            tasks.append(asyncio.ensure_future(house.residency.unload(source.entry)))
        else:
            await house.pass_time(random.choice([0.5, 4.0]))
        for _ in range(random.randrange(4)):
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert len(ends) == started
    assert 1 in ends
    await house.residency.stop()
    await house.loaded()
    await house.settled()
    assert all(service.stopped for source in sources for service in source.services)
    assert not any(source.entry.reserved for source in sources)
