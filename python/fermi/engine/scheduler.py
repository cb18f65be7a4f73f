"""Which tokens of which sequences each step computes: continuous batching over a bounded pool of KV blocks."""

from __future__ import annotations

import heapq
from array import array
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

from fermi.engine.blocks import BlockPool, PoolStats, block_key, root_key
from fermi.engine.event import Event, FinishReason, Timing, TokenLogprobs
from fermi.engine.limits import Limits
from fermi.engine.pace import Pace
from fermi.engine.plan import Plan, StepOutput, Work
from fermi.engine.sequence import Group, Request, Sequence
from fermi.engine.window import Window
from fermi.errors import RequestError

__all__ = ["Scheduler", "SchedulerStats"]

_order = attrgetter("order")
_SALT_BITS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """Counts of now (running and waiting sequences, tokens that wait, blocks) and since the start (the rest).

    ``prompt_tokens`` were asked for, ``generated_tokens`` drawn; ``preemptions`` gave up computed tokens for memory;
    ``step_sequences`` were computed in the ``steps``, a sequence once for each of its steps.
    """

    running: int
    waiting: int
    waiting_tokens: int
    prompt_tokens: int
    generated_tokens: int
    preemptions: int
    finished_requests: int
    blocks: PoolStats
    steps: int = 0
    step_sequences: int = 0


class Scheduler:
    """Plans steps and takes in their results. It has no tensors, no clock and no device.

    Sequences that draw a token come first, one token each; prompts share what the budget leaves, in chunks, and less
    where those that draw would wait too long (see `Pace`). When blocks run out, the last in order (priority, then arrival) gives up its blocks and is computed again later, so the first in
    order always advances and every request ends.

    Where every layer of the model looks through a window, a sequence gives back the blocks that have left it after each
    step, and a prompt gets blocks for a window and a step's tokens at a time: it may be longer than the pool. What was
    given back may stay in the prefix cache; a prompt goes on after the longest start whose last window is there.
    """

    def __init__(self, pool: BlockPool, limits: Limits) -> None:
        self.pool = pool
        self.limits = limits
        self._window = Window(limits.window, pool.block_size)
        self._pace = Pace(limits.stream_slowdown)
        self._groups: dict[str, Group] = {}
        self._running: list[Sequence] = []  # both in order
        self._waiting: list[Sequence] = []
        self._deadlines: list[tuple[float, int, str]] = []
        self._events: list[Event] = []
        self._arrivals = 0
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._preemptions = 0
        self._finished_requests = 0
        self._steps = 0
        self._step_sequences = 0
        self._step_began = 0.0
        self._drawing = 0  # sequences of the step that only draw

    # Requests

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._running or self._waiting or self._events)

    def stats(self) -> SchedulerStats:
        """Counts of now and since the start."""
        return SchedulerStats(
            running=len(self._running),
            waiting=len(self._waiting),
            waiting_tokens=sum(len(sequence.token_ids) for sequence in self._waiting),
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=self._preemptions,
            finished_requests=self._finished_requests,
            steps=self._steps,
            step_sequences=self._step_sequences,
            blocks=self.pool.stats(),
        )

    def check(self, request: Request) -> None:
        """RequestError when the request can never be served. Reads nothing that changes: any thread may call it."""
        self.limits.check(request, self.pool.total, self.pool.block_size)

    def block_keys(self, request: Request) -> Iterator[bytes]:
        """The content keys of a prompt's full blocks, in order. Any thread may ask."""
        token_ids, size = request.prompt_token_ids, self.pool.block_size
        key = self._root(request)
        for end in range(size, len(token_ids) + 1, size):
            key = block_key(key, token_ids[end - size : end])
            yield key

    def _root(self, request: Request) -> bytes:
        """The key before a prompt's first block."""
        length, original = len(request.prompt_token_ids), self.limits.rope_original_length
        rope_salt = length if original is not None and length > original else 0
        return root_key(request.cache_salt & _SALT_BITS, rope_salt)

    def add(self, request: Request, now: float) -> None:
        """Queues a request; RequestError when it can never be served, or when its id is in use."""
        self.check(request)
        if request.id in self._groups:
            raise RequestError(f"a request with the id {request.id!r} is running")
        self._arrivals += 1
        group = Group(request, now, self._arrivals, self._root(request))
        self._groups[request.id] = group
        self._prompt_tokens += len(request.prompt_token_ids)
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, self._arrivals, request.id))
        insort(self._waiting, group.sequences[0], key=_order)

    def abort(self, request_id: str, now: float, index: int | None = None) -> None:
        """Ends a request, or one sequence of it, and frees its blocks at once; what has ended already is ignored."""
        group = self._groups.get(request_id)
        if group is not None:
            for sequence in group.unborn:  # the first may end before it could share its prompt
                insort(self._waiting, sequence, key=_order)
            group.unborn = []
            self._end(group, "abort", now, index=index)

    def abort_all(self, now: float) -> None:
        """Ends every request."""
        for group in list(self._groups.values()):
            self._end(group, "abort", now)

    def fail(self, message: str, now: float) -> list[Event]:
        """A step failed: ends every running request, as what their blocks hold is not known."""
        for group in {id(sequence.group): sequence.group for sequence in self._running}.values():
            self._end(group, "error", now, message)
        return self._take_events()

    # A step

    def schedule(self, now: float) -> Plan:
        """The next step. Requests whose deadline has passed end before it."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, arrival_number, request_id = heapq.heappop(self._deadlines)
            group = self._groups.get(request_id)
            if group is not None and group.arrival_number == arrival_number:
                late = None if group.first_token is not None else "the deadline passed before the first token"
                self._end(group, "deadline", now, late)
        plan = Plan()
        if self._running and not self._running[0].decodes:
            self._make_room(self._running[0], plan)  # before the others take what there is
        self._drawing = self._schedule_decodes(plan)
        room = self.limits.max_num_batched_tokens - self._drawing
        self._schedule_prefills(plan, self._pace.budget(self._drawing, room))
        self._step_began = now
        self._steps += bool(plan.work)
        self._step_sequences += len(plan.work)
        for work in plan.work:
            if work.sequence.group.started is None:
                work.sequence.group.started = now
        return plan

    def _schedule_decodes(self, plan: Plan) -> int:
        """One token of every sequence that has one left to compute; returns how many."""
        place = 0
        while place < len(self._running):  # preemption shortens the list from its end
            sequence = self._running[place]
            if sequence.decodes and self._make_room(sequence, plan):
                plan.work.append(Work(sequence, sequence.computed, 1, [sequence]))
            place += 1
        return len(plan.work)

    def _make_room(self, sequence: Sequence, plan: Plan) -> bool:
        """Gives the next token a block of the sequence's own; False if none is left and the sequence was preempted."""
        place = sequence.computed // self.pool.block_size
        appends = place == len(sequence.blocks)
        if not appends and self.pool.references(sequence.blocks[place]) == 1:
            return True
        while self.pool.available == 0:
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        if appends:
            sequence.blocks.append(self.pool.allocate())
        else:
            self._copy_on_write(sequence, place, plan)
        return True

    def _copy_on_write(self, sequence: Sequence, place: int, plan: Plan) -> None:
        shared, own = sequence.blocks[place], self.pool.allocate()
        plan.copies.append((shared, own))
        sequence.blocks[place] = own
        self.pool.release([shared])

    def _schedule_prefills(self, plan: Plan, budget: int) -> None:
        """Chunks of prompts: the first in order gets half of the tokens and rows, and what the others leave."""
        rows = self.limits.max_scored_rows
        prefilling = [sequence for sequence in self._running if not sequence.decodes]
        for sequence in prefilling:
            self._extend(sequence)
        kept = min(prefilling[0].remaining, (budget + 1) // 2) if prefilling else 0
        kept_rows = (rows + 1) // 2 if prefilling else 0
        budget, rows = budget - kept, rows - kept_rows
        for sequence in prefilling[1:]:
            budget, rows = self._schedule_chunk(plan, sequence, budget, rows)
        while budget > 0 and self._waiting and len(self._running) < self.limits.max_num_seqs:
            if not self._admit(self._waiting[0], plan):
                break
            sequence = self._waiting.pop(0)
            insort(self._running, sequence, key=_order)
            budget, rows = self._schedule_chunk(plan, sequence, budget, rows)
        if prefilling:
            self._schedule_chunk(plan, prefilling[0], budget + kept, rows + kept_rows)

    def _schedule_chunk(self, plan: Plan, sequence: Sequence, budget: int, rows: int) -> tuple[int, int]:
        """Adds as much of a prompt as the budget and the rows to score allow; returns what is left of both."""
        group = sequence.group
        start = sequence.computed
        length = min(sequence.remaining, budget, len(sequence.blocks) * self.pool.block_size - start)
        scored = max(start, group.scored) if sequence.index == 0 else sequence.prompt_length
        scores = max(0, min(start + length, sequence.prompt_length - 1) - scored)
        if scores > rows:
            length, scores = scored + rows - start, rows
        if length <= 0:
            return budget, rows
        work = Work(sequence, start, length, scored=scored, scores=scores)
        if length == sequence.remaining and group.request.sampling.max_tokens > 0:
            work.draws = [sequence, *self._fork(sequence)]
        plan.work.append(work)
        return budget - length, rows - scores

    def _fork(self, parent: Sequence) -> list[Sequence]:
        """Starts the request's other sequences on the parent's blocks; those past ``max_num_seqs`` wait as prompts."""
        group = parent.group
        born, group.unborn = group.unborn, []
        places = self.limits.max_num_seqs - len(self._running)
        for sequence in born[places:]:
            insort(self._waiting, sequence, key=_order)
        for sequence in born[:places]:
            sequence.blocks = parent.blocks[:]
            sequence.dropped = parent.dropped
            self.pool.share(sequence.held)
            insort(self._running, sequence, key=_order)
        return born[:places]

    def _admit(self, sequence: Sequence, plan: Plan) -> bool:
        """Gives a waiting sequence blocks, found ones first, for all its tokens or as many as its window lets it hold
        at a time; False where there are too few."""
        pool, length = self.pool, len(sequence.token_ids)
        group = sequence.group
        found: list[int] = []
        must_score = sequence.index == 0 and group.scored < sequence.prompt_length - 1
        if pool.caches and not must_score:
            keys = (sequence.key(place, pool.block_size) for place in range(length // pool.block_size))
            found = pool.find(keys, self._window.chain)
        computed = min(len(found) * pool.block_size, length - 1)
        rewrites = computed < len(found) * pool.block_size  # the last token's block
        shared = rewrites and pool.references(found[-1]) > 0
        dropped = self._window.first_block(computed)
        taken = found[dropped:]
        needed = self._end_of_blocks(length, dropped) - len(found) + shared
        spare = len(self._running)  # each that runs may soon need one
        if needed + spare > pool.available - pool.idle(taken):
            return False
        fresh = sequence.output_length == 0 and sequence.index == 0 and group.started is None
        pool.take(taken, length if fresh else 0, computed if fresh else 0)
        if fresh:
            group.cached_tokens = computed
        sequence.blocks = array("i", [0] * dropped + taken)
        sequence.dropped = dropped
        sequence.computed = computed
        sequence.published = len(found)
        if shared:
            self._copy_on_write(sequence, len(found) - 1, plan)
        elif rewrites:
            pool.withdraw(found[-1])
        if rewrites:
            sequence.published -= 1
        self._extend(sequence)
        return True

    def _extend(self, sequence: Sequence) -> None:
        """Gives a prompt the blocks that its window lets it hold, as far as the others that run leave some."""
        missing = self._end_of_blocks(len(sequence.token_ids), sequence.dropped) - len(sequence.blocks)
        if missing > 0:
            others = len(self._running) - (sequence in self._running)
            for _ in range(min(missing, self.pool.available - others)):
                sequence.blocks.append(self.pool.allocate())

    def _end_of_blocks(self, length: int, dropped: int) -> int:
        """The number of the block after the last that a prompt may hold, its first ``dropped`` given back."""
        most = self._window.most_blocks(length, self.limits.max_num_batched_tokens)
        return min(-(-length // self.pool.block_size), dropped + min(most, self.pool.total))

    def _drop(self, sequence: Sequence) -> None:
        """Gives back the blocks that no query will see again."""
        first = self._window.first_block(sequence.computed)
        if first > sequence.dropped:
            self.pool.release(sequence.blocks[sequence.dropped : first])
            sequence.dropped = first

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)
        insort(self._waiting, sequence, key=_order)
        self._preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.held)
        sequence.blocks = array("i")
        sequence.dropped = 0
        sequence.computed = 0
        sequence.published = 0

    # Its results

    def commit(self, plan: Plan, output: StepOutput, now: float) -> list[Event]:
        """Takes in what a step computed and drew; returns the news of every sequence, ended ones included."""
        self._pace.learn(self._drawing, plan.tokens - self._drawing, now - self._step_began)
        place = 0
        for number, work in enumerate(plan.work):
            group = work.sequence.group
            if not work.sequence.finished:  # it is when another sequence of its request failed in this step
                self._advance(work)
                if work.scores and group.prompt_logprobs is not None:
                    group.prompt_logprobs.extend(output.prompt_logprobs[number])
                if not work.draws and work.sequence.remaining == 0:
                    self._end(group, "length", now)
            for sequence in work.draws:
                if not sequence.finished:
                    if output.token_ids[place] < 0:
                        self._end(group, "error", now, output.errors.get(place, "no token is left to draw"))
                    else:
                        self._append(sequence, output.token_ids[place], output.logprobs.get(place), now)
                place += 1
        return self._take_events()

    def _advance(self, work: Work) -> None:
        """Counts tokens as computed, offers blocks that are full now to the prefix cache, and gives back old ones."""
        sequence, pool = work.sequence, self.pool
        sequence.computed = work.start + work.length
        full = sequence.computed // pool.block_size
        if pool.caches:
            for place in range(sequence.published, full):
                pool.publish(sequence.blocks[place], sequence.key(place, pool.block_size))
        sequence.published = full
        for sibling in work.draws[1:]:
            sibling.computed = sequence.computed
            sibling.published = full
            sibling.keys = sequence.keys[:]
        for each in work.draws or [sequence]:
            self._drop(each)

    def _append(self, sequence: Sequence, token_id: int, logprobs: TokenLogprobs | None, now: float) -> None:
        group = sequence.group
        sampling = group.request.sampling
        sequence.token_ids.append(token_id)
        self._generated_tokens += 1
        if group.first_token is None:
            group.first_token = now
        event = Event(group.request.id, sequence.index, [token_id], cached_tokens=group.cached_tokens)
        if logprobs is not None:
            event.logprobs = [logprobs]
        bounded = sequence.constraint is not None and not sequence.constraint.free  # its end is the grammar's
        ends = token_id in group.request.eos_token_ids and (bounded or not sampling.ignore_eos)
        if ends or token_id in sampling.stop_token_ids:
            event.stop_token_id = token_id
            event.finish_reason = "stop"
        elif sequence.output_length >= sampling.max_tokens or len(sequence.token_ids) >= self.limits.max_model_len:
            event.finish_reason = "length"
        self._report(sequence, event)
        if event.finish_reason is not None:
            self._finish(sequence, event, now)

    def _report(self, sequence: Sequence, event: Event) -> None:
        group = sequence.group
        if sequence.index == 0 and group.prompt_logprobs is not None and sequence.output_length <= 1:
            event.prompt_logprobs = group.prompt_logprobs
        self._events.append(event)

    def _end(
        self, group: Group, reason: FinishReason, now: float, error: str | None = None, index: int | None = None
    ) -> None:
        """Ends what has not ended of a request, or one sequence of it."""
        for sequence in group.sequences if index is None else group.sequences[index : index + 1]:
            if not sequence.finished:
                event = Event(group.request.id, sequence.index, cached_tokens=group.cached_tokens, error=error)
                event.finish_reason = reason
                if reason == "length":  # of max_tokens = 0: the prompt was all
                    self._report(sequence, event)
                else:
                    self._events.append(event)
                self._finish(sequence, event, now)

    def _finish(self, sequence: Sequence, event: Event, now: float) -> None:
        group = sequence.group
        started = now if group.started is None else group.started
        first = now if group.first_token is None else group.first_token
        event.timing = Timing(started - group.arrival, first - started, now - first)
        self._release(sequence)
        sequence.finished = True
        sequence.draws = None
        for queue in (self._running, self._waiting):
            if sequence in queue:
                queue.remove(sequence)
        if group.finished:
            del self._groups[group.request.id]
            self._finished_requests += 1

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events
