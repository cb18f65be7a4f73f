"""Runs a step: the plan becomes a batch, the batch logits, the logits tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fermi import _C
from fermi.engine.batch import DecodeArrays, mixed_batch
from fermi.engine.drawing import Drawing
from fermi.engine.plan import Plan, StepOutput, Work
from fermi.models import Batch, KVCache, Model

__all__ = ["Runner"]

Logits = npt.NDArray[np.float32]

#: Bytes of intermediate results that compiled recordings may hold together; those used longest ago are dropped.
KEPT_BYTES = 2**28


class CompiledDecode:
    """The recording of one token for each of ``size`` sequences, described once and run at every step."""

    def __init__(self, runner: Runner, size: int) -> None:
        self.arrays = DecodeArrays(size, runner.max_blocks, runner.block_size)
        self.step, self.logits = runner.describe(self.arrays.batch)
        self.step.compile()


class Runner:
    """A model, its KV cache and the recordings made of it. One step at a time."""

    def __init__(
        self, model: Model, kv: KVCache, *, block_size: int, max_model_len: int, batch_invariant: bool = False
    ) -> None:
        self.block_size = block_size
        self.max_blocks = -(-max_model_len // block_size)
        self._model = model
        self._kv = kv
        self._batch_invariant = batch_invariant
        self._drawing = Drawing(model.vocab_size, model.backend.threads)
        self._decodes: OrderedDict[int, CompiledDecode] = OrderedDict()

    def run(self, plan: Plan) -> StepOutput:
        """Computes a plan and draws its tokens."""
        if plan.copies:
            self._copy(plan.copies)
        if not plan.work:
            return StepOutput()
        return self._drawing.draw(plan, self.compute(plan.work))

    def compute(self, work: list[Work]) -> Logits:
        """Logits [rows, vocab]: for each work its scored positions, then the last if it draws; good until the next."""
        if all(part.length == 1 and part.draws and not part.scores for part in work):
            decode = self._decode(len(work))
            decode.arrays.fill(work)
            decode.step.run()
            return decode.logits.numpy()
        step, logits = self.describe(mixed_batch(work, list(_logit_rows(work)), self.block_size))
        step.run()
        return logits.numpy()

    def cost(self, work: list[Work]) -> tuple[int, int]:
        """Bytes that the work must move and operations that it must do, each weight, key and value read once."""
        step, _ = self.describe(mixed_batch(work, list(_logit_rows(work)), self.block_size))
        return sum(cost.bytes for cost in step.costs), sum(cost.operations for cost in step.costs)

    def describe(self, batch: Batch) -> tuple[_C.Recording, _C.Tensor]:
        """The model called on a batch, as a recording that has not run, and the logits it will give."""
        with _C.record(self._model.backend, batch_invariant=self._batch_invariant) as step:
            logits = self._model(batch, self._kv)
        return step, logits

    def _decode(self, size: int) -> CompiledDecode:
        """The compiled recording of a batch size, made when it is first needed."""
        decodes = self._decodes
        if size not in decodes:
            decodes[size] = CompiledDecode(self, size)
            while len(decodes) > 1 and sum(each.step.workspace_bytes for each in decodes.values()) > KEPT_BYTES:
                decodes.popitem(last=False)
        decodes.move_to_end(size)
        return decodes[size]

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        """Copies blocks of every layer, in order: a later copy may read or overwrite what an earlier one wrote."""
        with _C.record(self._model.backend) as step:
            for source, destination in copies:
                for cache in self._kv:
                    for tensor in cache.tensors:
                        _C.copy(tensor.narrow(0, destination, 1), tensor.narrow(0, source, 1))
        step.run()


def _logit_rows(work: Iterable[Work]) -> Iterable[int]:
    """Which of a step's tokens need logits."""
    start = 0
    for part in work:
        yield from range(start + part.scored - part.start, start + part.scored - part.start + part.scores)
        if part.draws:
            yield start + part.length - 1
        start += part.length
