"""Which tokens of which sequences each step computes: continuous batching over a bounded pool of KV blocks."""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

from fermi.engine.blocks import BlockPool, PoolStats, block_key, root_key
from fermi.engine.event import Event, FinishReason, Timing, TokenLogprobs
from fermi.engine.holdings import Holdings
from fermi.engine.limits import Limits
from fermi.engine.pace import Pace
from fermi.engine.plan import Plan, StepOutput, Work
from fermi.engine.sequence import Group, Request, Sequence
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
    where those that draw would wait too long (see `Pace`) and the prompts' deadlines are far. When blocks run out, the
    last in order (priority, then arrival) gives up its blocks and is computed again later, so the first in order always
    advances and every request ends.

    Where no group of layers sees everything, a prompt may be longer than the pool (see `Holdings`).
    """

    def __init__(self, pool: BlockPool, limits: Limits) -> None:
        self.pool = pool
        self.limits = limits
        self.holdings = Holdings(pool, limits.windows, limits.max_num_batched_tokens)
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
        key = self._root(request, len(token_ids))
        for end in range(size, len(token_ids) + 1, size):
            key = block_key(key, token_ids[end - size : end])
            yield key

    def add(self, request: Request, now: float) -> None:
        """Queues a request; RequestError when it can never be served, or when its id is in use."""
        self.check(request)
        if request.id in self._groups:
            raise RequestError(f"a request with the id {request.id!r} is running")
        self._arrivals += 1
        group = Group(request, now, self._arrivals, self._root(request, len(request.prompt_token_ids)))
        self._groups[request.id] = group
        self._prompt_tokens += len(request.prompt_token_ids)
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, self._arrivals, request.id))
        insort(self._waiting, group.sequences[0], key=_order)

    def _root(self, request: Request, length: int) -> bytes:
        """The key before the blocks of a sequence whose rotary frequencies are chosen for that length."""
        return root_key(request.cache_salt & _SALT_BITS, self.limits.rope_regime(length))

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
        self._schedule_prefills(plan, room if self._hurries(now) else self._pace.budget(self._drawing, room))
        self._step_began = now
        self._steps += bool(plan.work)
        self._step_sequences += len(plan.work)
        for work in plan.work:
            if work.sequence.group.started is None:
                work.sequence.group.started = now
        return plan

    def _hurries(self, now: float) -> bool:
        """Whether half of the time of a prompt is over: streams do not hold it up any more, lest it end without a
        token."""
        for sequence in (*self._running, *self._waiting[:1]):
            deadline = sequence.group.request.deadline
            if deadline is not None and not sequence.decodes and 2 * now > sequence.group.arrival + deadline:
                return True
        return False

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
        """Gives the next token blocks of its sequence's own; False if there are too few and that was preempted."""
        while (lacking := self.holdings.lacking(sequence)) and len(lacking) > self.pool.available:
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        for table in lacking:
            self.holdings.own(table, sequence.computed // self.pool.block_size, plan.copies)
        return True

    def _schedule_prefills(self, plan: Plan, budget: int) -> None:
        """Chunks of prompts: the first in order gets half of the tokens and rows, and what the others leave."""
        rows = self.limits.max_scored_rows
        prefilling = [sequence for sequence in self._running if not sequence.decodes]
        spare = (len(self._running) - 1) * self.holdings.groups
        for sequence in prefilling:
            self.holdings.extend(sequence, spare)
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
        blocks = min(len(table.blocks) for table in sequence.tables)
        length = min(sequence.remaining, budget, blocks * self.pool.block_size - start)
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
            self.holdings.share(parent, sequence)
            insort(self._running, sequence, key=_order)
        return born[:places]

    def _admit(self, sequence: Sequence, plan: Plan) -> bool:
        """Gives a waiting sequence blocks; False where there are too few."""
        group = sequence.group
        must_score = sequence.index == 0 and group.scored < sequence.prompt_length - 1
        spare = len(self._running) * self.holdings.groups  # each that runs may soon need one of each group
        if not self.holdings.admit(sequence, spare, plan.copies, reuse=not must_score):
            return False
        if sequence.output_length == 0 and sequence.index == 0 and group.started is None:
            group.cached_tokens = sequence.computed
            self.pool.count(len(sequence.token_ids), sequence.computed)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._give_up(sequence)
        self._preemptions += 1

    def _give_up(self, sequence: Sequence) -> None:
        """Lets a running sequence wait, to be computed again."""
        self._running.remove(sequence)
        self.holdings.release(sequence)
        insort(self._waiting, sequence, key=_order)

    def _switch_rope(self, sequence: Sequence) -> None:
        """Has a sequence computed again that is as long now as to turn by other frequencies, all of it."""
        self._give_up(sequence)
        sequence.rope_length = len(sequence.token_ids)
        sequence.root = self._root(sequence.group.request, sequence.rope_length)
        sequence.keys = []

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
                    if place in output.errors:
                        self._end(group, "error", now, output.errors[place], refused=True)
                    elif output.token_ids[place] < 0:
                        self._end(group, "error", now, "no token is left to draw")
                    else:
                        complete = place in output.complete
                        self._append(sequence, output.token_ids[place], output.logprobs.get(place), complete, now)
                place += 1
        return self._take_events()

    def _advance(self, work: Work) -> None:
        """Counts tokens as computed, offers blocks that are full now to the prefix cache, and gives back old ones."""
        sequence = work.sequence
        sequence.computed = work.start + work.length
        self.holdings.publish(sequence)
        for sibling in work.draws[1:]:
            sibling.computed = sequence.computed
            sibling.published = sequence.published
            sibling.keys = sequence.keys[:]
        if self.holdings.slides:
            for each in work.draws or [sequence]:
                self.holdings.drop(each)

    def _append(
        self, sequence: Sequence, token_id: int, logprobs: TokenLogprobs | None, complete: bool, now: float
    ) -> None:
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
        elif complete:
            event.finish_reason = "stop"
        elif sequence.output_length >= sampling.max_tokens or len(sequence.token_ids) >= self.limits.max_model_len:
            event.finish_reason = "length"
        self._report(sequence, event)
        if event.finish_reason is not None:
            self._finish(sequence, event, now)
        elif len(sequence.token_ids) == self.limits.rope_switch:
            self._switch_rope(sequence)

    def _report(self, sequence: Sequence, event: Event) -> None:
        group = sequence.group
        if sequence.index == 0 and group.prompt_logprobs is not None and sequence.output_length <= 1:
            event.prompt_logprobs = group.prompt_logprobs
        self._events.append(event)

    def _end(
        self,
        group: Group,
        reason: FinishReason,
        now: float,
        error: str | None = None,
        index: int | None = None,
        *,
        refused: bool = False,
    ) -> None:
        """Ends what has not ended of a request, or one sequence of it."""
        for sequence in group.sequences if index is None else group.sequences[index : index + 1]:
            if not sequence.finished:
                event = Event(group.request.id, sequence.index, cached_tokens=group.cached_tokens, error=error)
                event.finish_reason, event.refused = reason, refused
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
        self.holdings.release(sequence)
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
