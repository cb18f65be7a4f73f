"""A runner whose model reads its history from the blocks, so that a wrong block changes a token; and its requests."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

from fermi.engine.blocks import BlockPool, root_key
from fermi.engine.event import Event, TokenLogprobs
from fermi.engine.eviction import LRU
from fermi.engine.limits import Limits
from fermi.engine.plan import Plan, StepOutput
from fermi.engine.sampling import Sampling
from fermi.engine.scheduler import Scheduler
from fermi.engine.sequence import Group, Request, Sequence

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


class Model:
    """What a model of some groups of layers keeps of each token: of the first group it depends on the token and on what
    is kept of those that it sees, of any other on what the one before made of the token, too.

    Attributes:
        states: of each group, in the order of the tokens.
    """

    def __init__(self, windows: tuple[int, ...] = (0,)) -> None:
        self.windows = windows
        self.states: list[list[int]] = [[] for _ in windows]

    def read(self, token_ids: Iterable[int], turned: bool = False) -> Model:
        """Takes in tokens; ``turned``: whether other rotary frequencies are in use than for short sequences."""
        for token in token_ids:
            state = digest(token, turned)
            for window, kept in zip(self.windows, self.states, strict=True):
                state = digest(state, kept[first_seen(len(kept), window) :])
                kept.append(state)
        return self

    @property
    def last(self) -> int:
        """The state that the next token is drawn from."""
        return self.states[-1][-1]


def expected_tokens(request: Request, index: int, max_model_len: int, *windows: int, switch: int = 0) -> list[int]:
    """What the request gives when nothing else exists. ``switch``: sequences of so many tokens turn otherwise."""
    output: list[int] = []
    tokens, sampling = list(request.prompt_token_ids), request.sampling
    turned = 0 < switch <= len(tokens)
    model = Model(windows or (0,)).read(tokens, turned)
    while len(output) < sampling.max_tokens and len(tokens) < max_model_len:
        token = next_token(model.last, index, len(output))
        output.append(token)
        tokens.append(token)
        if len(tokens) == switch:
            turned = True
            model = Model(model.windows).read(tokens, turned)
        else:
            model.read([token], turned)
        if token in sampling.stop_token_ids or (token in request.eos_token_ids and not sampling.ignore_eos):
            break
    return output


class FakeRunner:
    """Keeps (group, position, state) where a model keeps keys and values."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.pool = scheduler.pool
        self.windows = scheduler.limits.windows
        self.memory = [[(-1, -1, -1)] * self.pool.block_size for _ in range(self.pool.total)]
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
            assert len(sequence.tables) == len(self.windows)
            for position in range(work.start, work.start + work.length):
                state = digest(sequence.token_ids[position], self.turned(sequence, position))
                for group, (window, table) in enumerate(zip(self.windows, sequence.tables, strict=True)):
                    block = table.blocks[position // size]
                    assert self.pool.references(block) == len(work.draws or [sequence])  # nobody else sees the write
                    assert self.pool.key(block) is None
                    seen = range(first_seen(position, window), position)
                    state = digest(state, [self.state(sequence, each, group) for each in seen])
                    self.memory[block][position % size] = (group, position, state)
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

    def turned(self, sequence: Sequence, position: int) -> bool:
        switch = self.scheduler.limits.rope_switch
        return bool(switch) and max(sequence.rope_length, position + 1) >= switch

    def state(self, sequence: Sequence, position: int, group: int = -1) -> int:
        size, group = self.pool.block_size, group % len(self.windows)
        table = sequence.tables[group]
        assert position // size >= table.dropped
        *kept, state = self.memory[table.blocks[position // size]][position % size]
        assert kept == [group, position]
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


def blocks_needed(length: int, windows: tuple[int, ...], size: int) -> int:
    """The most blocks that the computation of a token sees in each group, by looking at each token."""
    return sum(
        max(position // size - first_seen(position, window) // size + 1 for position in range(length))
        for window in windows
    )
