"""The engine: requests in, a step at a time, events out."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fermi.engine.blocks import BlockPool
from fermi.engine.config import EngineConfig, cache_size
from fermi.engine.event import Event
from fermi.engine.eviction import eviction_policy
from fermi.engine.holdings import Holdings
from fermi.engine.layer_groups import LayerGroups
from fermi.engine.limits import Limits
from fermi.engine.plan import Plan, StepOutput, Work
from fermi.engine.runner import Runner
from fermi.engine.sampling import Sampling
from fermi.engine.scheduler import Scheduler, SchedulerStats
from fermi.engine.sequence import Group, Request, Table
from fermi.errors import EngineError
from fermi.models import KVCache, KVSpec, Model

__all__ = ["MOST_FAILURES", "Engine", "EngineConfig", "StepRunner"]

#: Logits per step for prompt log-probabilities, at most: 64 MiB of them.
SCORED_NUMBERS = 2**24

#: Steps that may fail in a row before the fault is not the requests'.
MOST_FAILURES = 3


class StepRunner(Protocol):
    """Computes what the scheduler plans."""

    def run(self, plan: Plan) -> StepOutput:
        """Computes a plan and draws its tokens."""

    def compute(self, work: list[Work]) -> npt.NDArray[np.float32]:
        """Logits of the positions that the work scores."""

    def cost(self, work: list[Work]) -> tuple[int, int]:
        """Bytes that the work must move and operations that it must do."""


class Engine:
    """A model that serves many requests at a time, each as if it were alone. For one thread.

    ``step`` computes some tokens of some requests and returns their news; call it while ``has_work``.

    Attributes:
        kv_spec: what is cached for each token.
        layer_groups: of layers that have blocks together.
    """

    kv_spec: KVSpec
    layer_groups: LayerGroups

    def __init__(self, model: Model, config: EngineConfig, *, scheduler: type[Scheduler] = Scheduler) -> None:
        """Allocates the KV cache. ConfigError when it would not hold one sequence of ``max_model_len`` tokens."""
        spec = config.kv_spec(model.kv_spec)
        groups = LayerGroups.of(model.windows, config.max_model_len or model.max_position_embeddings)
        free_memory = model.backend.memory()[0]
        size = cache_size(config, spec, model.max_position_embeddings, free_memory, groups)
        limits = Limits(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=size.max_model_len,
            vocab_size=model.vocab_size,
            max_scored_rows=max(16, SCORED_NUMBERS // model.vocab_size),
            rope_original_length=model.rope_original_length if model.rope_depends_on_length else None,
            stream_slowdown=config.stream_slowdown,
            rope_switch=model.rope_original_length + 1 if model.rope_switches else 0,
            windows=groups.windows,
        )
        self.kv_spec, self.layer_groups = spec, groups

        def parts() -> tuple[Scheduler, StepRunner]:
            policy = eviction_policy(config.eviction) if config.prefix_cache else None
            runner = Runner(
                model,
                KVCache.allocate(spec, size.blocks, config.block_size, model.backend, groups.of_layers),
                block_size=config.block_size,
                max_model_len=size.max_model_len,
                batch_invariant=config.batch_invariant,
            )
            return scheduler(BlockPool(size.blocks, config.block_size, policy), limits), runner

        self._assemble(parts, time.monotonic)

    @classmethod
    def assemble(cls, scheduler: Scheduler, runner: StepRunner, clock: Callable[[], float]) -> Engine:
        """An engine of given parts, for tests and other runners. ``clock`` gives seconds."""
        return cls.assemble_by(lambda: (scheduler, runner), clock)

    @classmethod
    def assemble_by(cls, parts: Callable[[], tuple[Scheduler, StepRunner]], clock: Callable[[], float]) -> Engine:
        """An engine of parts that are made now, and again by ``reset``."""
        engine = cls.__new__(cls)
        engine._assemble(parts, clock)
        return engine

    def _assemble(self, parts: Callable[[], tuple[Scheduler, StepRunner]], clock: Callable[[], float]) -> None:
        self._parts = parts
        self._clock = clock
        self._failures = 0  # of steps, in a row
        self._scheduler, self._runner = parts()

    def reset(self) -> None:
        """Begins anew, with no requests and an empty KV cache: for a fault that left the parts in disorder.

        Whatever allocating the cache raises, and then nothing but another reset may be tried.
        """
        if hasattr(self, "_runner"):
            del self._runner  # and its cache, before there is another
        self._scheduler, self._runner = self._parts()
        self._failures = 0

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together."""
        return self._scheduler.limits.max_model_len

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of the KV cache, which holds one group of layers."""
        return self.layer_groups.block_bytes(self.kv_spec, self._scheduler.pool.block_size)

    @property
    def vocab_size(self) -> int:
        """Columns of the model's logits."""
        return self._scheduler.limits.vocab_size

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self._scheduler.has_work

    def stats(self) -> SchedulerStats:
        """Counts of now and since the start."""
        return self._scheduler.stats()

    def check(self, request: Request) -> None:
        """RequestError when the request can never be served. Any thread may call it."""
        self._scheduler.check(request)

    def block_keys(self, request: Request) -> Iterator[bytes]:
        """The keys under which the prefix cache has the full blocks of a prompt, in order. Any thread may call it."""
        return self._scheduler.block_keys(request)

    def caches(self, key: bytes) -> bool:
        """Whether the prefix cache has a block of this key. Any thread may call it, and get what was true just now."""
        return self._scheduler.pool.has(key)

    def add(self, request: Request) -> None:
        """Queues a request; RequestError when it can never be served, or when its id is in use."""
        self._scheduler.add(request, self._clock())

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends a request, or one sequence of it, and frees its blocks; the next step tells. Ended ones are ignored."""
        self._scheduler.abort(request_id, self._clock(), index)

    def abort_all(self) -> None:
        """Ends every request."""
        self._scheduler.abort_all(self._clock())

    def step(self) -> list[Event]:
        """Computes some tokens. When that fails, every request that ran ends with an error; the engine goes on.

        When it fails `MOST_FAILURES` times in a row, the fault is not the requests', and what it was is raised.
        """
        plan = self._scheduler.schedule(self._clock())
        try:
            output = self._runner.run(plan)
        except Exception as error:
            self._failures += 1
            if self._failures == MOST_FAILURES:
                raise
            return self._scheduler.fail(f"{type(error).__name__}: {error}", self._clock())
        self._failures = 0
        return self._scheduler.commit(plan, output, self._clock())

    def cost(self, sequences: int, tokens: int, context: int) -> tuple[int, int]:
        """Bytes that must be moved and operations that must be done, at the least, for ``tokens`` of each of so many
        sequences after ``context`` others, each sequence in chunks of a step."""
        pool, limits = self._scheduler.pool, self._scheduler.limits
        length = context + tokens
        request = Request(id="", prompt_token_ids=array("i", bytes(4 * length)), sampling=Sampling())
        moved = computed = 0
        chunk = max(1, limits.max_num_batched_tokens // sequences)
        for start in range(context, length, chunk):
            work = []
            for _ in range(sequences):
                sequence = Group(request, 0.0, 0, b"").sequences[0]
                blocks = [0] * -(-length // pool.block_size)  # any: nothing runs
                sequence.tables = [Table(blocks) for _ in limits.windows]
                part = Work(sequence, start, min(chunk, length - start))
                part.draws = [sequence] if start + part.length == length else []
                work.append(part)
            step_moved, step_computed = self._runner.cost(work)
            moved, computed = moved + step_moved, computed + step_computed
        return moved, computed

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """The raw logits after each token: float32 [tokens, vocab]. Uses free blocks, so not while requests run.

        Raises:
            RequestError: no tokens, too many, or some that the vocabulary does not have.
            EngineError: other requests hold the blocks it needs.
        """
        request = Request(id="", prompt_token_ids=token_ids, sampling=Sampling(max_tokens=0))
        self.check(request)
        pool, limits = self._scheduler.pool, self._scheduler.limits
        chunk = limits.max_scored_rows
        holdings = Holdings(pool, limits.windows, chunk)
        sequence = Group(request, 0.0, 0, b"").sequences[0]
        sequence.tables = holdings.empty()
        needed = holdings.most_blocks(len(token_ids))
        if needed > pool.available:
            raise EngineError(f"{len(token_ids)} tokens need {needed} blocks; {pool.available} are free")
        logits = np.empty((len(token_ids), limits.vocab_size), np.float32)
        try:
            for start in range(0, len(token_ids), chunk):
                length = min(chunk, len(token_ids) - start)
                sequence.computed = start
                holdings.drop(sequence)
                holdings.extend(sequence, 0)
                work = Work(sequence, start, length, scored=start, scores=length)
                logits[start : start + length] = self._runner.compute([work])
        finally:
            holdings.release(sequence)
        return logits
