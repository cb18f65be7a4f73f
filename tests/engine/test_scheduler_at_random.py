"""The scheduler under random traces: tokens are right, blocks are conserved, every request ends."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.fake_runner import (
    EOS,
    VOCAB,
    FakeRunner,
    blocks_needed,
    expected_tokens,
    first_seen,
    prompt_of,
    request,
    step,
    tokens_of,
)
from fermi.engine.blocks import BlockPool
from fermi.engine.event import Event
from fermi.engine.eviction import eviction_policy
from fermi.engine.limits import Limits
from fermi.engine.scheduler import Scheduler
from fermi.engine.sequence import Request
from fermi.errors import RequestError


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, go, fail and expire in any order over a pool that is usually too small."""

    @initialize(
        blocks=st.integers(1, 20),
        windows=st.sampled_from(
            [(0,), (0,), (1,), (2,), (3,), (4,), (5,), (9,), (30,), (0, 4), (2, 0), (1, 5), (9, 0, 2)]
        ),
        switches=st.booleans(),
        seqs=st.integers(1, 5),
        more=st.integers(0, 10),
        rows=st.integers(1, 6),
        policy=st.sampled_from(["lru", "lfu", "fifo", None]),
    )
    def start(
        self,
        blocks: int,
        windows: tuple[int, ...],
        switches: bool,
        seqs: int,
        more: int,
        rows: int,
        policy: str | None,
    ) -> None:
        limits = Limits(
            max_num_seqs=seqs,
            max_num_batched_tokens=seqs + more,
            max_model_len=18,
            vocab_size=VOCAB,
            max_scored_rows=rows,
            rope_original_length=12,
            rope_switch=13 if switches else 0,
            windows=windows,
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
        if blocks_needed(longest, self.scheduler.limits.windows, 3) > self.scheduler.pool.total:
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
        assert all(not sequence.tables for sequence in scheduler._waiting)
        for sequence in scheduler._running:
            for window, table in zip(scheduler.limits.windows, sequence.tables, strict=True):
                assert table.dropped == first_seen(sequence.computed, window) // 3
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
        limits = self.scheduler.limits
        return expected_tokens(item, index, 18, *limits.windows, switch=limits.rope_switch)

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
