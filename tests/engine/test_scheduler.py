"""The scheduler with a fake runner: who runs, who waits, what is shared, how requests end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.fake_runner import (
    MIXED,
    VOCAB,
    FakeRunner,
    Model,
    drain,
    expected_tokens,
    make,
    prompt_of,
    request,
    score,
    step,
    tokens_of,
)
from fermi.engine.event import Event
from fermi.engine.pace import LEAST
from fermi.errors import ContextLengthError, RequestError


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


def test_a_prompt_whose_time_runs_out_is_not_held_up() -> None:
    """A step takes a second for each of its tokens: a prompt gets few beside a stream, until half its time is over."""
    scheduler = make(blocks=256, budget=128, length=400, stream_slowdown=2.0)
    runner = FakeRunner(scheduler)
    scheduler.add(request("stream", prompt_of(2), max_tokens=390), 0.0)
    taken: list[tuple[float, int]] = []
    events: list[Event] = []
    now = 0.0
    while "prompt" not in {event.request_id for event in events}:
        if len(taken) == 4:
            scheduler.add(request("prompt", prompt_of(330, seed=1), max_tokens=1, deadline=600.0 - now), now)
        plan = scheduler.schedule(now)
        taken.append((now, plan.tokens - 1))
        now += plan.tokens
        events += scheduler.commit(plan, runner.run(plan), now)
    taken = taken[4:]
    assert max(tokens for began, tokens in taken if began <= 300) == LEAST
    assert max(tokens for began, tokens in taken if began > 300) > LEAST
    assert [event.finish_reason for event in events if event.request_id == "prompt"] == ["length"]


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
        assert [entry and entry.logprob for entry in told[1:]] == [
            score(state) for state in Model().read(prompt).states[0][:20]
        ]


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
