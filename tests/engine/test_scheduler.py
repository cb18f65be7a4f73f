"""The scheduler with a fake runner whose model reads its history from the blocks: a wrong block changes a token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fermi.engine.blocks import BlockPool, root_key
from fermi.engine.event import Event, TokenLogprobs
from fermi.engine.eviction import LRU, eviction_policy
from fermi.engine.limits import Limits
from fermi.engine.plan import Plan, StepOutput
from fermi.engine.sampling import Sampling
from fermi.engine.scheduler import Scheduler
from fermi.engine.sequence import Group, Request, Sequence
from fermi.errors import ContextLengthError, RequestError

VOCAB = 50
EOS = 7


def digest(*what: object) -> int:
    return int.from_bytes(blake2b(repr(what).encode(), digest_size=8).digest(), "little")


def next_token(state: object, index: int, produced: int) -> int:
    return digest(state, index, produced) % VOCAB


def score(state: int) -> float:
    return -1.0 - next_token(state, 0, 0)


def first_seen(position: int, window: int) -> int:
    return max(0, position - window + 1) if window else 0


def states(token_ids: Iterable[int], window: int = 0) -> list[int]:
    """What a model keeps of each token: it depends on the token and on what is kept of those that it sees."""
    kept: list[int] = []
    for position, token in enumerate(token_ids):
        kept.append(digest(token, kept[first_seen(position, window) :]))
    return kept


def expected_tokens(request: Request, index: int, max_model_len: int, window: int = 0) -> list[int]:
    """What the request gives when nothing else exists."""
    output: list[int] = []
    kept = states(request.prompt_token_ids, window)
    sampling = request.sampling
    while len(output) < sampling.max_tokens and len(kept) < max_model_len:
        token = next_token(kept[-1], index, len(output))
        output.append(token)
        kept.append(digest(token, kept[first_seen(len(kept), window) :]))
        if token in sampling.stop_token_ids or (token in request.eos_token_ids and not sampling.ignore_eos):
            break
    return output


class FakeRunner:
    """Keeps (position, state) where a model keeps keys and values."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.pool = scheduler.pool
        self.memory = [[(-1, -1)] * self.pool.block_size for _ in range(self.pool.total)]
        self.largest = 0
        self.computed = 0
        self.errors: set[str] = set()  # requests that cannot draw

    def run(self, plan: Plan) -> StepOutput:
        size, output = self.pool.block_size, StepOutput()
        for source, destination in plan.copies:
            self.memory[destination] = list(self.memory[source])
        self.largest = max(self.largest, plan.tokens)
        self.computed += plan.tokens
        for work in plan.work:
            sequence = work.sequence
            assert work.length > 0
            assert work.start == sequence.computed
            for position in range(work.start, work.start + work.length):
                block = sequence.blocks[position // size]
                assert self.pool.references(block) == len(work.draws or [sequence])  # nobody else sees the write
                assert self.pool.key(block) is None
                seen = [self.state(sequence, each) for each in range(self.first_seen(position), position)]
                self.memory[block][position % size] = (position, digest(sequence.token_ids[position], seen))
        for number, work in enumerate(plan.work):
            if work.scores:
                sequence = work.sequence
                output.prompt_logprobs[number] = [
                    TokenLogprobs(sequence.token_ids[position + 1], score(self.state(sequence, position)), 1, [])
                    for position in range(work.scored, work.scored + work.scores)
                ]
            for sequence in work.draws:
                assert work.start + work.length == len(sequence.token_ids)
                state = self.state(sequence, work.start + work.length - 1)
                place = len(output.token_ids)
                if sequence.group.request.id in self.errors:
                    output.token_ids.append(-1)
                    output.errors[place] = "told to fail"
                else:
                    output.token_ids.append(next_token(state, sequence.index, sequence.output_length))
        return output

    def first_seen(self, position: int) -> int:
        return first_seen(position, self.scheduler.limits.window)

    def state(self, sequence: Sequence, position: int) -> int:
        size = self.pool.block_size
        assert position // size >= sequence.dropped
        kept, state = self.memory[sequence.blocks[position // size]][position % size]
        assert kept == position
        return state


def make(
    blocks: int = 64,
    block_size: int = 4,
    cache: bool = True,
    seqs: int = 8,
    budget: int = 16,
    length: int = 64,
    **more: Any,
) -> Scheduler:
    limits = Limits(max_num_seqs=seqs, max_num_batched_tokens=budget, max_model_len=length, vocab_size=VOCAB, **more)
    return Scheduler(BlockPool(blocks, block_size, LRU() if cache else None), limits)


def request(name: str, prompt: list[int], **sampling: Any) -> Request:
    options = {
        key: sampling.pop(key) for key in ("deadline", "priority", "cache_salt", "eos_token_ids") if key in sampling
    }
    return Request(id=name, prompt_token_ids=prompt, sampling=Sampling(**sampling), **options)


def step(scheduler: Scheduler, runner: FakeRunner, now: float = 0.0) -> list[Event]:
    plan = scheduler.schedule(now)
    return scheduler.commit(plan, runner.run(plan), now)


def scheduler_keys(scheduler: Scheduler, item: Request) -> list[bytes]:
    """The keys of a prompt's full blocks."""
    sequence = Group(item, 0.0, 0, root_key(0, 0)).sequences[0]
    size = scheduler.pool.block_size
    return [sequence.key(place, size) for place in range(len(item.prompt_token_ids) // size)]


def drain(scheduler: Scheduler, runner: FakeRunner, limit: int = 2000) -> list[Event]:
    events: list[Event] = []
    for _ in range(limit):
        if not scheduler.has_work:
            assert scheduler.pool.available == scheduler.pool.total
            return events
        events += step(scheduler, runner)
    raise AssertionError("requests do not end")


def tokens_of(events: list[Event], name: str, index: int = 0) -> list[int]:
    return [token for event in events if (event.request_id, event.index) == (name, index) for token in event.token_ids]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [next_token((seed, place), 0, 0) for place in range(length)]


MIXED = [
    request("short", prompt_of(3, 1), max_tokens=20),
    request("long", prompt_of(40, 2), max_tokens=20),
    request("blocks", prompt_of(16, 3), max_tokens=9),
    request("same start", [*prompt_of(40, 2)[:20], 1, 2, 3], max_tokens=12),
    request("again", prompt_of(40, 2), max_tokens=24),
    request("one", [5], max_tokens=30),
    request("many", prompt_of(10, 4), max_tokens=8, n=3),
    request("full", prompt_of(55, 6), max_tokens=50),
]


@pytest.mark.parametrize("budget", [8, 16, 64, 512])
@pytest.mark.parametrize("blocks", [16, 24, 200])
@pytest.mark.parametrize("cache", [True, False])
def test_tokens_do_not_depend_on_what_else_runs(budget: int, blocks: int, cache: bool) -> None:
    scheduler = make(blocks=blocks, cache=cache, budget=budget)
    runner = FakeRunner(scheduler)
    for item in MIXED:
        scheduler.add(item, 0.0)
    events = drain(scheduler, runner)
    for item in MIXED:
        for index in range(item.sampling.n):
            assert tokens_of(events, item.id, index) == expected_tokens(item, index, 64), item.id
    assert runner.largest <= budget
    assert blocks > 24 or scheduler.stats().preemptions > 0


def test_a_prompt_is_computed_once_for_n_sequences() -> None:
    scheduler = make()
    runner = FakeRunner(scheduler)
    scheduler.add(request("r", prompt_of(10), n=4, max_tokens=1), 0.0)
    assert len([event for event in drain(scheduler, runner) if event.token_ids]) == 4
    assert runner.computed == 10


def test_sequences_beyond_the_limit_wait() -> None:
    scheduler = make(seqs=2)
    runner = FakeRunner(scheduler)
    item = request("r", prompt_of(10), n=5, max_tokens=6)
    scheduler.add(item, 0.0)
    events = drain(scheduler, runner)
    for index in range(5):
        assert tokens_of(events, "r", index) == expected_tokens(item, index, 64)


@pytest.mark.parametrize("length", [15, 16, 17])
def test_a_known_prompt_is_not_computed_again(length: int) -> None:
    scheduler = make()
    runner = FakeRunner(scheduler)
    first, second = (request(name, prompt_of(length), max_tokens=1) for name in ("first", "second"))
    scheduler.add(first, 0.0)
    before = drain(scheduler, runner)
    assert before[-1].cached_tokens == 0
    computed = runner.computed
    scheduler.add(second, 0.0)
    after = drain(scheduler, runner)
    cached = min(length - length % 4, length - 1)
    assert runner.computed - computed == length - cached
    assert after[-1].cached_tokens == cached
    assert tokens_of(after, "second") == tokens_of(before, "first")
    assert scheduler.stats().blocks.hit_tokens == cached


def test_a_full_hit_on_a_block_in_use_is_copied() -> None:
    scheduler = make()
    runner = FakeRunner(scheduler)
    first, second = (request(name, prompt_of(16), max_tokens=20) for name in ("first", "second"))
    scheduler.add(first, 0.0)
    events = step(scheduler, runner)
    scheduler.add(second, 0.0)
    plan = scheduler.schedule(0.0)
    assert len(plan.copies) == 1
    events += scheduler.commit(plan, runner.run(plan), 0.0)
    events += drain(scheduler, runner)
    assert tokens_of(events, "first") == tokens_of(events, "second") == expected_tokens(first, 0, 64)


def test_salted_requests_share_nothing() -> None:
    scheduler = make()
    runner = FakeRunner(scheduler)
    for number, salt in enumerate((0, 1, 2**70 + 3)):
        scheduler.add(request(f"r{number}", prompt_of(16), max_tokens=1, cache_salt=salt), 0.0)
        assert drain(scheduler, runner)[-1].cached_tokens == 0


def test_long_prompts_share_only_with_their_own_length_where_rotary_frequencies_depend_on_it() -> None:
    scheduler = make(rope_original_length=20)
    runner = FakeRunner(scheduler)
    cached = []
    for number, length in enumerate((24, 28, 24, 20, 16)):
        scheduler.add(request(f"r{number}", prompt_of(length), max_tokens=1), 0.0)
        cached.append(drain(scheduler, runner)[-1].cached_tokens)
    assert cached == [0, 0, 23, 0, 15]


def test_ends() -> None:
    scheduler = make()
    runner = FakeRunner(scheduler)
    prompt = prompt_of(5)
    free = expected_tokens(request("x", prompt, max_tokens=30), 0, 64)
    third = free[2]
    assert third not in free[:2]

    def last(**options: Any) -> Event:
        scheduler.add(request("r", prompt, **options), 0.0)
        events = drain(scheduler, runner)
        assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
        return replace(events[-1], token_ids=tokens_of(events, "r"))

    event = last(max_tokens=30, eos_token_ids=frozenset({third}))
    assert (event.finish_reason, event.stop_token_id, event.token_ids) == ("stop", third, free[:3])
    event = last(max_tokens=30, stop_token_ids=frozenset({third}))
    assert (event.finish_reason, event.stop_token_id, event.token_ids) == ("stop", third, free[:3])
    event = last(max_tokens=8, eos_token_ids=frozenset({third}), ignore_eos=True)
    assert (event.finish_reason, event.stop_token_id, event.token_ids) == ("length", None, free[:8])
    event = last(max_tokens=100)
    assert (event.finish_reason, len(event.token_ids)) == ("length", 59)
    event = last(max_tokens=0)
    assert (event.finish_reason, event.token_ids) == ("length", [])


def test_prompt_log_probabilities_are_complete_and_bounded_per_step() -> None:
    scheduler = make(max_scored_rows=5, budget=32)
    runner = FakeRunner(scheduler)
    prompt = prompt_of(21)
    scheduler.add(request("warm", prompt, max_tokens=1), 0.0)
    drain(scheduler, runner)
    scheduler.add(request("r", prompt, max_tokens=3, prompt_logprobs=0), 0.0)
    scheduler.add(request("s", prompt, max_tokens=0, prompt_logprobs=0, n=2), 0.0)
    events = []
    while scheduler.has_work:
        plan = scheduler.schedule(0.0)
        assert sum(work.scores for work in plan.work) <= 5
        events += scheduler.commit(plan, runner.run(plan), 0.0)
    for name in ("r", "s"):
        (told,) = [event.prompt_logprobs for event in events if event.request_id == name and event.prompt_logprobs]
        assert told[0] is None
        assert [entry and entry.token_id for entry in told[1:]] == prompt[1:]
        assert [entry and entry.logprob for entry in told[1:]] == [score(state) for state in states(prompt)[:20]]


def test_abort_frees_the_blocks_at_once() -> None:
    scheduler = make()
    runner = FakeRunner(scheduler)
    scheduler.add(request("r", prompt_of(10), max_tokens=20, n=2), 0.0)
    scheduler.add(request("waits", prompt_of(10), max_tokens=20), 0.0)
    step(scheduler, runner)
    step(scheduler, runner)
    scheduler.abort("r", 1.0)
    scheduler.abort("waits", 1.0)
    assert scheduler.pool.available == scheduler.pool.total
    events = step(scheduler, runner, 1.0)
    assert sorted((event.request_id, event.index, event.finish_reason) for event in events) == [
        ("r", 0, "abort"),
        ("r", 1, "abort"),
        ("waits", 0, "abort"),
    ]
    assert not scheduler.has_work
    scheduler.abort("r", 2.0)
    assert not scheduler.has_work


def test_deadlines() -> None:
    scheduler = make(seqs=1)
    runner = FakeRunner(scheduler)
    scheduler.add(request("runs", prompt_of(4), max_tokens=30, deadline=5.0), 0.0)
    scheduler.add(request("waits", prompt_of(4), max_tokens=30, deadline=3.0), 1.0)
    assert [event.finish_reason for event in step(scheduler, runner, 2.0)] == [None]
    (late, going) = step(scheduler, runner, 3.0)
    assert (late.request_id, late.finish_reason, late.token_ids) == ("waits", "deadline", [])
    assert late.error is not None
    assert going.request_id == "runs"
    (ended,) = step(scheduler, runner, 5.0)
    assert (ended.finish_reason, ended.error) == ("deadline", None)
    assert ended.timing is not None
    assert (ended.timing.queue_s, ended.timing.prefill_s, ended.timing.decode_s) == (2.0, 0.0, 3.0)
    assert not scheduler.has_work


def test_an_ended_request_leaves_no_deadline_for_the_next_of_its_name() -> None:
    scheduler = make()
    runner = FakeRunner(scheduler)
    scheduler.add(request("r", prompt_of(4), max_tokens=1, deadline=5.0), 0.0)
    drain(scheduler, runner)
    scheduler.add(request("r", prompt_of(4), max_tokens=5), 0.0)
    assert [event.finish_reason for event in step(scheduler, runner, 6.0)] == [None]


def test_an_error_ends_its_request_only() -> None:
    scheduler = make()
    runner = FakeRunner(scheduler)
    good = request("good", prompt_of(4), max_tokens=5)
    scheduler.add(good, 0.0)
    scheduler.add(request("bad", prompt_of(6), max_tokens=5, n=3), 0.0)
    runner.errors = {"bad"}
    events = drain(scheduler, runner)
    assert tokens_of(events, "good") == expected_tokens(good, 0, 64)
    bad = [event for event in events if event.request_id == "bad"]
    assert [(event.finish_reason, event.error) for event in bad] == [("error", "told to fail")] * 3


def test_a_failed_step_ends_what_runs_and_nothing_else() -> None:
    scheduler = make(seqs=1)
    runner = FakeRunner(scheduler)
    waits = request("waits", prompt_of(4), max_tokens=5)
    scheduler.add(request("runs", prompt_of(6), max_tokens=5), 0.0)
    scheduler.add(waits, 0.0)
    scheduler.schedule(0.0)
    (event,) = scheduler.fail("the device is lost", 1.0)
    assert (event.request_id, event.finish_reason, event.error) == ("runs", "error", "the device is lost")
    assert tokens_of(drain(scheduler, runner), "waits") == expected_tokens(waits, 0, 64)


def test_decodes_go_on_while_a_long_prompt_is_computed() -> None:
    scheduler = make(budget=8)
    runner = FakeRunner(scheduler)
    scheduler.add(request("talks", prompt_of(4), max_tokens=30), 0.0)
    step(scheduler, runner)
    scheduler.add(request("reads", prompt_of(60), max_tokens=1), 0.0)
    for _ in range(8):
        assert tokens_of(step(scheduler, runner), "talks")


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    scheduler = make(budget=16)
    runner = FakeRunner(scheduler)
    scheduler.add(request("long", prompt_of(60), max_tokens=1), 0.0)
    step(scheduler, runner)
    scheduler.add(request("short", prompt_of(6, 1), max_tokens=1), 0.0)
    plan = scheduler.schedule(0.0)
    assert {work.sequence.group.request.id: work.length for work in plan.work} == {"long": 10, "short": 6}
    assert tokens_of(scheduler.commit(plan, runner.run(plan), 0.0), "short")


def test_later_prompts_do_not_starve_the_first_of_rows_to_score() -> None:
    scheduler = make(budget=16, max_scored_rows=4, blocks=200, seqs=16)
    runner = FakeRunner(scheduler)
    scheduler.add(request("first", prompt_of(60), max_tokens=0, prompt_logprobs=0), 0.0)
    for number in range(60):
        scheduler.add(request(f"r{number}", prompt_of(60, number + 1), max_tokens=0, prompt_logprobs=0), 0.0)
        if any(event.request_id == "first" for event in step(scheduler, runner)):
            break
    else:
        raise AssertionError("starved")


def test_priority_comes_before_arrival() -> None:
    scheduler = make(seqs=1)
    runner = FakeRunner(scheduler)
    for name, priority in (("low", 5), ("high", -1), ("middle", 0)):
        scheduler.add(request(name, prompt_of(4), max_tokens=1, priority=priority), 0.0)
    assert [event.request_id for event in drain(scheduler, runner)] == ["high", "middle", "low"]


def test_refusals() -> None:
    scheduler = make(blocks=8, block_size=4, length=64)
    good = request("r", [1, 2], max_tokens=4)
    scheduler.add(good, 0.0)
    with pytest.raises(RequestError, match="'r'"):
        scheduler.add(good, 0.0)
    with pytest.raises(RequestError, match="empty"):
        scheduler.check(request("x", []))
    with pytest.raises(RequestError, match="prompt: token id 50 is not in"):
        scheduler.check(request("x", [VOCAB]))
    with pytest.raises(RequestError, match="prompt: token id -1 is not in"):
        scheduler.check(request("x", [-1]))
    with pytest.raises(RequestError, match="never fit"):
        scheduler.check(request("x", [1] * 20, max_tokens=20))
    with pytest.raises(RequestError, match="logit_bias"):
        scheduler.check(request("x", [1], logit_bias={VOCAB: 1.0}))
    with pytest.raises(RequestError, match="stop_token_ids"):
        scheduler.check(request("x", [1], stop_token_ids=frozenset({-4})))
    with pytest.raises(ContextLengthError, match="maximum context length is 64 tokens") as caught:
        scheduler.check(request("x", [1] * 64, max_tokens=1))
    assert caught.value.code == "context_length_exceeded"


def blocks_needed(length: int, window: int, size: int) -> int:
    """The most blocks that the computation of a token sees, by looking at each."""
    return max(position // size - first_seen(position, window) // size + 1 for position in range(length))


@pytest.mark.parametrize("window", [1, 2, 4, 5, 8, 13, 100])
@pytest.mark.parametrize("budget", [8, 16, 64])
@pytest.mark.parametrize("cache", [True, False])
def test_windows_give_their_blocks_back(window: int, budget: int, cache: bool) -> None:
    needed = blocks_needed(64, window, 4)
    for blocks in (needed, needed + 3, 40):
        scheduler = make(blocks=blocks, cache=cache, budget=budget, window=window)
        runner = FakeRunner(scheduler)
        for item in MIXED:
            scheduler.add(item, 0.0)
        events = drain(scheduler, runner)
        for item in MIXED:
            for index in range(item.sampling.n):
                expected = expected_tokens(item, index, 64, window)
                assert tokens_of(events, item.id, index) == expected, (item.id, blocks)


def test_a_sequence_may_be_much_longer_than_the_pool() -> None:
    scheduler = make(blocks=6, budget=8, length=1000, window=12)
    runner = FakeRunner(scheduler)
    item = request("r", prompt_of(500), max_tokens=400)
    scheduler.add(item, 0.0)
    steps = 0
    while len(tokens := tokens_of(step(scheduler, runner), "r")) == 0:
        steps += 1
        assert scheduler.stats().blocks.used <= 6
    assert steps == -(-500 // 8) - 1  # no chunk was cut short
    tokens += tokens_of(drain(scheduler, runner), "r")
    assert tokens == expected_tokens(item, 0, 1000, 12)
    assert scheduler.stats().preemptions == 0
    with pytest.raises(RequestError, match="900 tokens can never fit the KV cache of 12 tokens"):
        make(blocks=3, length=1000, window=12).check(item)


def test_a_decode_holds_the_blocks_of_its_window() -> None:
    scheduler = make(blocks=20, budget=16, length=200, window=9)
    runner = FakeRunner(scheduler)
    scheduler.add(request("r", prompt_of(30), max_tokens=100, n=2), 0.0)
    while scheduler.has_work:
        step(scheduler, runner)
        if all(sequence.computed > 42 for sequence in scheduler._running):  # their own, all of them
            assert scheduler.stats().blocks.used <= 3 * len(scheduler._running)


@pytest.mark.parametrize("length", [35, 36, 37])
def test_a_prompt_goes_on_after_the_last_window_that_is_cached(length: int) -> None:
    scheduler = make(blocks=12, budget=16, window=10)
    runner = FakeRunner(scheduler)
    pool = scheduler.pool
    first, second = (request(name, prompt_of(length), max_tokens=1) for name in ("first", "second"))
    scheduler.add(first, 0.0)
    before = drain(scheduler, runner)
    for _ in range(pool.total - length // 4):  # a request of another prompt …
        pool.allocate()
    lost = [pool.allocate() for _ in range(2)]  # … evicts the start of this one
    assert not set(lost) & set(pool.find(scheduler_keys(scheduler, first), 3)[-3:])
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
    assert pool.find(keys) == blocks[:2]
    assert pool.find(keys, 1) == [*blocks[:2], -1, *blocks[3:]]
    assert pool.find(keys, 3) == [*blocks[:2], -1, *blocks[3:]]
    assert pool.find(keys, 4) == blocks[:2]
    assert pool.find(keys[:5], 3) == blocks[:2]


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, go, fail and expire in any order over a pool that is usually too small."""

    @initialize(
        blocks=st.integers(1, 14),
        window=st.sampled_from([0, 0, 1, 2, 3, 4, 5, 9, 30]),
        seqs=st.integers(1, 5),
        more=st.integers(0, 10),
        rows=st.integers(1, 6),
        policy=st.sampled_from(["lru", "lfu", "fifo", None]),
    )
    def start(self, blocks: int, window: int, seqs: int, more: int, rows: int, policy: str | None) -> None:
        limits = Limits(
            max_num_seqs=seqs,
            max_num_batched_tokens=seqs + more,
            max_model_len=18,
            vocab_size=VOCAB,
            max_scored_rows=rows,
            rope_original_length=12,
            window=window,
        )
        pool = BlockPool(blocks, 3, None if policy is None else eviction_policy(policy))
        self.scheduler = Scheduler(pool, limits)
        self.runner = FakeRunner(self.scheduler)
        self.requests: dict[str, Request] = {}
        self.events: list[Event] = []
        self.now = 0.0

    @rule(
        base=st.integers(0, 1),
        length=st.integers(1, 17),
        max_tokens=st.integers(0, 20),
        n=st.integers(1, 4),
        priority=st.integers(0, 1),
        patience=st.one_of(st.none(), st.integers(1, 10)),
        scored=st.sampled_from([None, None, 0]),
    )
    def add(
        self, base: int, length: int, max_tokens: int, n: int, priority: int, patience: int | None, scored: int | None
    ) -> None:
        item = request(
            f"r{len(self.requests)}",
            prompt_of(17, base)[:length],
            max_tokens=max_tokens,
            n=n,
            priority=priority,
            deadline=None if patience is None else self.now + patience,
            prompt_logprobs=scored,
            eos_token_ids=frozenset({EOS}),
        )
        longest = min(18, length + max_tokens)
        if blocks_needed(longest, self.scheduler.limits.window, 3) > self.scheduler.pool.total:
            with pytest.raises(RequestError, match="can never fit"):
                self.scheduler.add(item, self.now)
            return
        self.scheduler.add(item, self.now)
        self.requests[item.id] = item

    @rule()
    def step(self) -> None:
        self.now += 1.0
        self.runner.largest = 0
        self.events += step(self.scheduler, self.runner, self.now)
        assert self.runner.largest <= self.scheduler.limits.max_num_batched_tokens

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.scheduler.abort(data.draw(st.sampled_from(sorted(self.requests))), self.now)

    @rule()
    def fail_a_step(self) -> None:
        self.scheduler.schedule(self.now)
        self.events += self.scheduler.fail("broken", self.now)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def spoil(self, data: st.DataObject) -> None:
        self.runner.errors.add(data.draw(st.sampled_from(sorted(self.requests))))

    @invariant()
    def blocks_are_conserved(self) -> None:
        scheduler = self.scheduler
        stats = scheduler.stats()
        held = [block for sequence in scheduler._running for block in sequence.held]
        assert stats.blocks.used == len(set(held))
        assert stats.blocks.free + stats.blocks.used + stats.blocks.cached == stats.blocks.total
        assert all(scheduler.pool.references(block) == held.count(block) for block in held)
        assert stats.running <= scheduler.limits.max_num_seqs
        assert all(not sequence.blocks for sequence in scheduler._waiting)
        for sequence in scheduler._running:
            assert sequence.dropped == first_seen(sequence.computed, scheduler.limits.window) // 3
        assert scheduler._running == sorted(scheduler._running, key=lambda sequence: sequence.order)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(3000):
            if not self.scheduler.has_work:
                break
            self.step()
            self.blocks_are_conserved()
        assert not self.scheduler.has_work, "starved"
        assert self.scheduler.pool.available == self.scheduler.pool.total
        for item in self.requests.values():
            for index in range(item.sampling.n):
                self.check_history(item, index)

    def expected(self, item: Request, index: int) -> list[int]:
        return expected_tokens(item, index, 18, self.scheduler.limits.window)

    def check_history(self, item: Request, index: int) -> None:
        events = [event for event in self.events if (event.request_id, event.index) == (item.id, index)]
        ends = [event.finish_reason for event in events]
        assert ends[:-1] == [None] * (len(ends) - 1)
        assert ends[-1] is not None
        tokens, expected = tokens_of(events, item.id, index), self.expected(item, index)
        assert tokens == (expected if ends[-1] in ("stop", "length") else expected[: len(tokens)])
        if index == 0 and item.sampling.prompt_logprobs is not None and ends[-1] in ("stop", "length"):
            told = [event.prompt_logprobs for event in events if event.prompt_logprobs is not None]
            assert len(told) == 1
            assert len(told[0]) == len(item.prompt_token_ids)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=200, stateful_step_count=40)
