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


def blocks_needed(length: int, window: int, size: int) -> int:
    """The most blocks that the computation of a token sees, by looking at each."""
    return max(position // size - first_seen(position, window) // size + 1 for position in range(length))
