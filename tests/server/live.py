"""A model without weights behind the real engine: its steps happen when a test permits them, or at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fermi.engine.blocks import BlockPool
from fermi.engine.engine import Engine
from fermi.engine.eviction import LRU
from fermi.engine.limits import Limits
from fermi.engine.plan import Plan, StepOutput, Work
from fermi.engine.scheduler import Scheduler
from fermi.engine.service import Service
from fermi.server.served import ServedModel
from server.toy import toy_model

VOCAB = 258  # bytes, and the two special tokens of the toy's tokenizer
LETTER_A = ord("a") - ord("!")
BLOCKS, BLOCK_SIZE = 256, 16


class Crash(BaseException):
    """What no step catches."""


class Paced:
    """Says "a" after whatever was said.

    Attributes:
        free: steps need no permit; else each takes one of ``permits``.
        entered, stepped: released before and after each such step.
        failure: what the next steps raise; ``crash``: what escapes them, once.
        later: seconds that the engine's clock is ahead.
        made: how often the engine was assembled.
        resetting: released when it is about to be, again; then one of ``resets`` is needed, unless ``free``.
    """

    def __init__(self, *, free: bool = True, max_model_len: int = 4096, **service: int) -> None:
        self.free = free
        self.permits = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.stepped = threading.Semaphore(0)
        self.resetting = threading.Semaphore(0)
        self.resets = threading.Semaphore(0)
        self.failure: Exception | None = None
        self.crash: BaseException | None = None
        self.steps = 0
        self.made = 0
        self._max_model_len = max_model_len
        self.later = 0.0
        self.engine = Engine.assemble_by(self._parts, lambda: time.monotonic() + self.later)
        self.service = Service(self.engine, max_running=8, **service)
        self.service.start()

    def _parts(self) -> tuple[Scheduler, Paced]:
        self.made += 1
        if self.made > 1:
            self.resetting.release()
            if not self.free:
                self.resets.acquire()
        limits = Limits(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=self._max_model_len, vocab_size=VOCAB)
        return Scheduler(BlockPool(BLOCKS, BLOCK_SIZE, LRU()), limits), self

    def run(self, plan: Plan) -> StepOutput:
        if not plan.work:
            return StepOutput()
        if not self.free:
            self.entered.release()
            self.permits.acquire()
        self.steps += 1
        crash, self.crash = self.crash, None
        if crash is not None:
            raise crash
        if self.failure is not None:
            raise self.failure
        output = StepOutput()
        output.token_ids += [LETTER_A for part in plan.work for _ in part.draws]
        self.stepped.release()
        return output

    def compute(self, work: list[Work]) -> npt.NDArray[np.float32]:
        raise NotImplementedError

    def cost(self, work: list[Work]) -> tuple[int, int]:
        return 0, 0

    def let_go(self) -> None:
        """No more waiting."""
        self.free = True
        self.permits.release(1000)
        self.resets.release(1000)

    def served(self, name: str = "paced") -> ServedModel:
        """It as a model of a server."""
        return replace(toy_model(name=name), service=self.service, max_model_len=self._max_model_len)

    @property
    def idle(self) -> bool:
        """No request runs or waits, and no block is held."""
        stats = self.service.stats
        return not (stats.running or stats.waiting or stats.blocks.used or self.service.open_requests)


def wait_for(condition: Callable[[], object]) -> None:
    """Wait for what comes by itself, and soon."""
    pause = threading.Event()
    for _ in range(60_000):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError("it has not come within a minute")
