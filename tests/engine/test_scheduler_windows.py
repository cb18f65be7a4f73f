"""The scheduler where layers slide: blocks that no layer of a group sees any more go back to the pool."""

from __future__ import annotations

import pytest

from engine.fake_runner import (
    MIXED,
    FakeRunner,
    blocks_needed,
    drain,
    expected_tokens,
    make,
    prompt_of,
    request,
    scheduler_keys,
    step,
    tokens_of,
)
from fermi.engine.blocks import BlockPool
from fermi.engine.eviction import LRU
from fermi.errors import RequestError


@pytest.mark.parametrize(
    "windows", [(1,), (2,), (4,), (5,), (8,), (13,), (100,), (5, 0), (0, 0, 9), (3, 13, 3), (100, 0, 1, 2)], ids=str
)
@pytest.mark.parametrize("budget", [8, 16, 64])
@pytest.mark.parametrize("cache", [True, False])
def test_windows_give_their_blocks_back(windows: tuple[int, ...], budget: int, cache: bool) -> None:
    needed = blocks_needed(64, windows, 4)
    for blocks in (needed, needed + 3, 40 * len(windows)):
        scheduler = make(blocks=blocks, cache=cache, budget=budget, windows=windows)
        runner = FakeRunner(scheduler)
        for item in MIXED:
            scheduler.add(item, 0.0)
        events = drain(scheduler, runner)
        for item in MIXED:
            for index in range(item.sampling.n):
                expected = expected_tokens(item, index, 64, *windows)
                assert tokens_of(events, item.id, index) == expected, (item.id, blocks)


@pytest.mark.parametrize(("windows", "blocks"), [((12,), 6), ((12, 5), 10)])
def test_a_sequence_may_be_much_longer_than_the_pool(windows: tuple[int, ...], blocks: int) -> None:
    scheduler = make(blocks=blocks, budget=8, length=1000, windows=windows)
    runner = FakeRunner(scheduler)
    item = request("r", prompt_of(500), max_tokens=400)
    scheduler.add(item, 0.0)
    steps = 0
    while len(tokens := tokens_of(step(scheduler, runner), "r")) == 0:
        steps += 1
        assert scheduler.stats().blocks.used <= blocks
    assert steps == -(-500 // 8) - 1  # no chunk was cut short
    tokens += tokens_of(drain(scheduler, runner), "r")
    assert tokens == expected_tokens(item, 0, 1000, *windows)
    assert scheduler.stats().preemptions == 0
    with pytest.raises(RequestError, match="900 tokens can never fit the KV cache of 12 tokens"):
        make(blocks=3, length=1000, windows=(12,)).check(item)


def test_a_decode_holds_the_blocks_of_its_window() -> None:
    scheduler = make(blocks=20, budget=16, length=200, windows=(9,))
    runner = FakeRunner(scheduler)
    scheduler.add(request("r", prompt_of(30), max_tokens=100, n=2), 0.0)
    while scheduler.has_work:
        step(scheduler, runner)
        if all(sequence.computed > 42 for sequence in scheduler._running):  # their own, all of them
            assert scheduler.stats().blocks.used <= 3 * len(scheduler._running)


@pytest.mark.parametrize("length", [35, 36, 37])
def test_a_prompt_goes_on_after_the_last_window_that_is_cached(length: int) -> None:
    scheduler = make(blocks=12, budget=16, windows=(10,))
    runner = FakeRunner(scheduler)
    pool = scheduler.pool
    first, second = (request(name, prompt_of(length), max_tokens=1) for name in ("first", "second"))
    scheduler.add(first, 0.0)
    before = drain(scheduler, runner)
    for _ in range(pool.total - length // 4):  # a request of another prompt …
        pool.allocate()
    lost = [pool.allocate() for _ in range(2)]  # … evicts the start of this one
    assert not set(lost) & set(pool.find(scheduler_keys(scheduler, first), [3])[0][-3:])
    pool.release(lost)
    computed = runner.computed
    scheduler.add(second, 0.0)
    events = step(scheduler, runner)
    cached = min(length - length % 4, length - 1)
    assert runner.computed - computed == length - cached
    assert events[-1].cached_tokens == cached
    assert tokens_of(events, "second") == tokens_of(before, "first") == expected_tokens(first, 0, 64, 10)


def test_a_start_whose_last_window_is_not_cached_is_computed_again() -> None:
    pool = BlockPool(8, 4, LRU())
    keys = [bytes([place]) for place in range(6)]
    blocks = [pool.allocate() for _ in keys]
    for place in (0, 1, 3, 4, 5):
        pool.publish(blocks[place], keys[place])
    assert pool.find(keys) == [blocks[:2]]
    assert pool.find(keys, [1]) == [[*blocks[:2], -1, *blocks[3:]]]
    assert pool.find(keys, [3]) == [[*blocks[:2], -1, *blocks[3:]]]
    assert pool.find(keys, [4]) == [blocks[:2]]
    assert pool.find(keys[:5], [3]) == [blocks[:2]]


def test_every_group_must_find_what_it_sees() -> None:
    pool = BlockPool(12, 4, LRU())
    keys = [bytes([place]) for place in range(6)]
    full, sliding = ([pool.allocate() for _ in keys] for _ in range(2))
    for place, key in enumerate(keys):
        pool.publish(full[place], key)
        if place in (0, 1, 3, 4):
            pool.publish(sliding[place], key, 1)
    assert pool.find(keys, [None, 2]) == [full[:5], [*sliding[:2], -1, *sliding[3:5]]]
    assert pool.find(keys, [None, 3]) == pool.find(keys, [None, None]) == [full[:2], sliding[:2]]
    assert pool.find(keys, [None]) == [full]
    pool.withdraw(full[3])
    assert pool.find(keys, [None, 2]) == [full[:2], sliding[:2]]


def test_a_prompt_goes_on_from_a_reply_of_which_a_group_has_dropped_the_start() -> None:
    scheduler = make(blocks=60, length=200, windows=(0, 10))
    runner = FakeRunner(scheduler)
    first = request("first", prompt_of(37), max_tokens=60)
    scheduler.add(first, 0.0)
    reply = tokens_of(drain(scheduler, runner), "first")
    computed = runner.computed
    second = request("second", [*prompt_of(37), *reply, 1, 2, 3], max_tokens=5)
    scheduler.add(second, 0.0)
    events = drain(scheduler, runner)
    assert events[-1].cached_tokens == 96
    assert runner.computed - computed == 100 - 96 + 4
    assert tokens_of(events, "second") == expected_tokens(second, 0, 200, 0, 10)


def test_a_waiting_prompt_is_looked_up_again_only_when_the_cache_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = make(blocks=10, windows=(40,))
    runner, pool, lookups = FakeRunner(scheduler), scheduler.pool, []
    find = pool.find
    monkeypatch.setattr(pool, "find", lambda *arguments: lookups.append(pool.version) or find(*arguments))
    scheduler.add(request("talks", prompt_of(12), max_tokens=17), 0.0)
    scheduler.add(request("waits", prompt_of(32, 1), max_tokens=1), 0.0)
    for _ in range(16):
        step(scheduler, runner)
        assert scheduler.stats().waiting == 1
    _, *others = lookups  # the first is that of the request that talks
    assert len(others) == len(set(others)) <= 5
    assert tokens_of(drain(scheduler, runner), "waits")
