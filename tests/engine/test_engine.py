"""The engine over a runner without a model: what fails, fails alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fermi.engine.blocks import BlockPool
from fermi.engine.drawing import Drawing
from fermi.engine.engine import MOST_FAILURES, Engine
from fermi.engine.event import Event
from fermi.engine.eviction import LRU
from fermi.engine.limits import Limits
from fermi.engine.plan import Plan, StepOutput, Work
from fermi.engine.sampling import Sampling
from fermi.engine.scheduler import Scheduler
from fermi.engine.sequence import Request
from fermi.errors import EngineError, RequestError

VOCAB = 40
BROKEN = 39  # is never drawn; after it there are no numbers


class LogitsRunner:
    """A model whose logits after a token are fixed numbers of that token and its position."""

    def __init__(self) -> None:
        self.drawing = Drawing(VOCAB)
        self.failure: Exception | None = None
        self.steps = 0

    def run(self, plan: Plan) -> StepOutput:
        self.steps += 1
        if self.failure is not None:
            raise self.failure
        return self.drawing.draw(plan, self.compute(plan.work), self.drawing.start(plan)) if plan.work else StepOutput()

    def compute(self, work: list[Work]) -> npt.NDArray[np.float32]:
        rows = []
        for part in work:
            tokens = part.sequence.token_ids
            rows += [logits_after(tokens[place], place) for place in range(part.scored, part.scored + part.scores)]
            if part.draws:
                last = part.start + part.length - 1
                rows.append(logits_after(tokens[last], last))
        return np.array(rows, np.float32).reshape(-1, VOCAB)


def logits_after(token: int, position: int) -> npt.NDArray[np.float32]:
    row = np.random.default_rng([token, position]).standard_normal(VOCAB).astype(np.float32)
    row[BROKEN] = -np.inf
    return np.full(VOCAB, np.nan, np.float32) if token == BROKEN else row


def make(**limits: int) -> tuple[Engine, LogitsRunner]:
    bounds = {"max_num_seqs": 8, "max_num_batched_tokens": 32, "max_model_len": 64, "vocab_size": VOCAB, **limits}
    runner = LogitsRunner()
    return Engine.assemble(Scheduler(BlockPool(64, 4, LRU()), Limits(**bounds)), runner, lambda: 0.0), runner


def request(name: str, prompt: list[int], grammar: Any = None, **sampling: Any) -> Request:
    return Request(id=name, prompt_token_ids=prompt, sampling=Sampling(**sampling), grammar=grammar)


def drain(engine: Engine) -> list[Event]:
    events = []
    while engine.has_work:
        events += engine.step()
    return events


def tokens_of(events: list[Event], name: str, index: int = 0) -> list[int]:
    return [token for event in events if (event.request_id, event.index) == (name, index) for token in event.token_ids]


def run(item: Request) -> list[Event]:
    engine, _ = make()
    engine.add(item)
    return drain(engine)


def test_logits_without_numbers_end_their_request_only() -> None:
    engine, _ = make()
    engine.add(request("bad", [1, BROKEN], max_tokens=4))
    engine.add(request("good", [1, 2], max_tokens=4, temperature=0))
    events = drain(engine)
    assert [event.finish_reason for event in events if event.request_id == "bad"] == ["error"]
    assert len(tokens_of(events, "good")) == 4


def test_a_failing_step_ends_what_runs_and_the_engine_goes_on() -> None:
    engine, runner = make(max_num_seqs=1)
    for name in ("first", "second"):
        engine.add(request(name, [1, 2], max_tokens=3))
    runner.failure = RuntimeError("the device is lost")
    (event,) = engine.step()
    assert (event.request_id, event.finish_reason) == ("first", "error")
    assert event.error == "RuntimeError: the device is lost"
    runner.failure = None
    assert len(tokens_of(drain(engine), "second")) == 3


def test_steps_that_keep_failing_are_no_fault_of_requests() -> None:
    engine, runner = make()
    for number in range(2 * MOST_FAILURES):  # with a step that succeeds between each two
        runner.failure = RuntimeError("a bad request")
        engine.add(request(f"bad{number}", [1, 2], max_tokens=2))
        assert [event.finish_reason for event in drain(engine)] == ["error"]
        runner.failure = None
        engine.add(request(f"good{number}", [1, 2], max_tokens=2))
        drain(engine)
    runner.failure = RuntimeError("the device is lost")
    for number in range(MOST_FAILURES - 1):
        engine.add(request(f"lost{number}", [1, 2], max_tokens=2))
        drain(engine)
    engine.add(request("last", [1, 2], max_tokens=2))
    with pytest.raises(RuntimeError, match="the device is lost"):
        engine.step()


def test_a_reset_engine_begins_anew() -> None:
    made: list[LogitsRunner] = []

    def parts() -> tuple[Scheduler, LogitsRunner]:
        bounds = Limits(max_num_seqs=8, max_num_batched_tokens=32, max_model_len=64, vocab_size=VOCAB)
        made.append(LogitsRunner())
        return Scheduler(BlockPool(64, 4, LRU()), bounds), made[-1]

    engine = Engine.assemble_by(parts, lambda: 0.0)
    prompt = list(range(9))
    engine.add(request("a", prompt, max_tokens=4, temperature=0.0))
    expected = tokens_of(drain(engine), "a")
    engine.add(request("b", prompt, max_tokens=9, temperature=0.0))
    [event] = engine.step()
    assert event.cached_tokens == 8
    engine.reset()
    assert not engine.has_work
    assert engine.stats().blocks.used == engine.stats().blocks.cached == 0
    engine.add(request("b", prompt, max_tokens=4, temperature=0.0))
    events = drain(engine)
    assert tokens_of(events, "b") == expected
    assert {event.cached_tokens for event in events} == {0}
    assert [runner.steps for runner in made] == [5, 4]


def test_a_seed_gives_the_same_tokens_whatever_else_runs() -> None:
    item = request("r", [3, 4, 5], seed=7, max_tokens=12, n=3, top_p=0.9)
    alone = run(item)
    engine, _ = make()
    for number in range(5):
        engine.add(request(f"other {number}", [number + 1], max_tokens=5 + number))
        engine.step()
    engine.add(item)
    together = drain(engine)
    sequences = [tokens_of(alone, "r", index) for index in range(3)]
    assert sequences == [tokens_of(together, "r", index) for index in range(3)]
    assert sequences[0] != sequences[1] != sequences[2]


def test_without_a_seed_draws_differ() -> None:
    first, second = (tokens_of(run(request("r", [3], max_tokens=30)), "r") for _ in range(2))
    assert first != second


def test_the_greedy_token_has_the_top_log_probability() -> None:
    events = run(request("r", [3], max_tokens=5, temperature=0, logprobs=2))
    for event in events:
        (entry,) = event.logprobs or []
        assert entry.token_id == event.token_ids[0]
        assert entry.rank == 1
        assert entry.top[0] == (entry.token_id, entry.logprob)
        assert len(entry.top) == 2


def test_log_probabilities_ignore_penalties_and_temperature() -> None:
    plain = run(request("r", [3], max_tokens=1, logprobs=40, seed=1))
    bent = run(request("r", [3], max_tokens=1, logprobs=40, seed=1, temperature=0.5, repetition_penalty=1.9))
    assert (plain[0].logprobs or [])[0].top == (bent[0].logprobs or [])[0].top


def test_prompt_log_probabilities() -> None:
    prompt = [3, 4, 5, 6]
    (event,) = run(request("r", prompt, max_tokens=0, prompt_logprobs=1))
    first, *rest = event.prompt_logprobs or []
    assert first is None
    for place, entry in enumerate(rest):
        exact = logits_after(prompt[place], place).astype(np.float64)
        exact -= np.log(np.exp(exact).sum())
        assert entry is not None
        assert entry.token_id == prompt[place + 1]
        assert entry.logprob == pytest.approx(exact[entry.token_id], abs=1e-6)
        assert entry.top[0][0] == int(exact.argmax())


def test_end_tokens_are_not_drawn_before_min_tokens() -> None:
    free = tokens_of(run(request("r", [3], max_tokens=9, temperature=0)), "r")
    bounded = Request(
        id="r",
        prompt_token_ids=[3],
        sampling=Sampling(max_tokens=9, min_tokens=4, temperature=0, stop_token_ids=frozenset({free[1]})),
        eos_token_ids=frozenset({free[0], 10**6}),
    )
    tokens = tokens_of(run(bounded), "r")
    assert len(tokens) >= 4
    assert not {free[0], free[1]} & set(tokens[:4])


class Countdown:
    """Allows 5, then 4, … then fails."""

    free = False
    complete = False

    def __init__(self, start: int = 5) -> None:
        self.next = start

    def start(self) -> Countdown:
        return Countdown(self.next)

    @staticmethod
    def fill(constraints: Sequence[Countdown], masks: npt.NDArray[np.uint32]) -> dict[int, str]:
        masks[:] = 0
        for row, each in enumerate(constraints):
            if each.next >= 0:
                masks[row, each.next // 32] = 1 << (each.next % 32)
        return {row: "blast off" for row, each in enumerate(constraints) if each.next < 0}

    def accept(self, token_id: int) -> None:
        assert token_id == self.next
        self.next -= 1


def test_a_grammar_bounds_each_sequence() -> None:
    events = run(request("r", [3], max_tokens=4, n=2, grammar=Countdown()))
    assert tokens_of(events, "r", 0) == tokens_of(events, "r", 1) == [5, 4, 3, 2]


def test_a_failing_grammar_ends_its_request_only() -> None:
    engine, _ = make()
    engine.add(request("bad", [1, 2], max_tokens=9, grammar=Countdown(1)))
    engine.add(request("good", [1, 2], max_tokens=4))
    events = drain(engine)
    assert tokens_of(events, "bad") == [1, 0]
    assert next(event.error for event in events if event.error) == "the grammar failed: blast off"
    assert len(tokens_of(events, "good")) == 4


def test_logits_of_every_token() -> None:
    engine, _ = make(max_scored_rows=3)
    logits = engine.logits([1, 2, 3, 4, 5, 6, 7])
    assert np.array_equal(logits, [logits_after(token, place) for place, token in enumerate(range(1, 8))])
    assert engine.stats().blocks.used == 0
    with pytest.raises(RequestError, match="empty"):
        engine.logits([])
    engine.add(request("r", [1] * 60, max_tokens=1, n=1))
    assert engine.logits([1]).shape == (1, VOCAB)


def test_logits_need_free_blocks() -> None:
    runner = LogitsRunner()
    limits = Limits(max_num_seqs=2, max_num_batched_tokens=32, max_model_len=16, vocab_size=VOCAB)
    engine = Engine.assemble(Scheduler(BlockPool(4, 4, LRU()), limits), runner, lambda: 0.0)
    engine.add(request("r", [1, 2, 3], max_tokens=9))
    engine.step()
    with pytest.raises(EngineError, match="3 are free"):
        engine.logits([1] * 16)


def test_one_sequence_of_a_request_can_be_aborted() -> None:
    engine, _ = make()
    engine.add(request("r", [1, 2], n=3, max_tokens=5))
    events = engine.step()
    engine.abort("r", 1)
    events += drain(engine)
    assert [len(tokens_of(events, "r", index)) for index in range(3)] == [5, 1, 5]


def test_the_first_sequence_can_be_aborted_before_the_prompt_is_computed() -> None:
    engine, _ = make()
    engine.add(request("r", [1, 2], n=3, max_tokens=5))
    engine.abort("r", 0)
    events = drain(engine)
    assert [len(tokens_of(events, "r", index)) for index in range(3)] == [0, 5, 5]
    assert engine.stats().running == engine.stats().waiting == engine.stats().blocks.used == 0
