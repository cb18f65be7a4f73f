"""Runs a step: the plan becomes a batch, the batch logits, the logits tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fermi import _C
from fermi.engine.batch import DecodeArrays, MixedArrays
from fermi.engine.drawing import Drawing
from fermi.engine.plan import Plan, StepOutput, Work
from fermi.models import Batch, KVCache, Model

__all__ = ["Runner"]

Logits = npt.NDArray[np.float32]

#: Bytes of intermediate results that recordings may hold together: those of one token for each of so many sequences,
#: and those of other shapes. What is larger is described anew for each step.
KEPT_DECODE_BYTES = 2**28
KEPT_MIXED_BYTES = 2**25
#: How many: one takes about 2 KiB for each of its ops.
MOST_DECODES = 64
MOST_MIXED = 24

#: Tokens, sequences, rows of logits, columns of the block tables.
Shape = tuple[int, int, int, int]


class Compiled:
    """The recording of a shape, described once and run at every step of that shape."""

    def __init__(self, runner: Runner, arrays: DecodeArrays | MixedArrays) -> None:
        self.arrays = arrays
        self.step, self.logits = runner.describe(arrays.batch)
        self.step.compile()

    def run(self, work: list[Work]) -> Logits:
        """The logits of a step, good until the next one."""
        self.arrays.fill(work)
        self.step.run()
        return self.logits.numpy()


class Kept:
    """Recordings by shape. Those used longest ago go when they are more than ``most``, or hold more bytes together."""

    def __init__(self, make: Callable[[Shape], Compiled], most: int, most_bytes: int) -> None:
        self._make = make
        self._most = most
        self._most_bytes = most_bytes
        self._made: OrderedDict[Shape, Compiled] = OrderedDict()

    def __len__(self) -> int:
        return len(self._made)

    def get(self, shape: Shape) -> Compiled:
        """The recording of a shape, made if there is none."""
        made = self._made
        if shape in made:
            made.move_to_end(shape)
            return made[shape]
        found = self._make(shape)
        if found.step.workspace_bytes <= self._most_bytes:
            made[shape] = found
            held = sum(each.step.workspace_bytes for each in made.values())
            while held > self._most_bytes or len(made) > self._most:
                _, dropped = made.popitem(last=False)
                held -= dropped.step.workspace_bytes
        return found


class Runner:
    """A model, its KV cache and the recordings made of it. One step at a time."""

    def __init__(
        self, model: Model, kv: KVCache, *, block_size: int, max_model_len: int, batch_invariant: bool = False
    ) -> None:
        self._block_size = block_size
        self._max_blocks = -(-max_model_len // block_size)
        self._model = model
        self._kv = kv
        self._groups = 1 + max(layer.group for layer in kv)
        self._batch_invariant = batch_invariant
        self._drawing = Drawing(model.vocab_size, model.backend.threads)
        self._decodes = Kept(self._make_decode, MOST_DECODES, KEPT_DECODE_BYTES)
        self._mixed = Kept(self._make_mixed, MOST_MIXED, KEPT_MIXED_BYTES)

    def run(self, plan: Plan) -> StepOutput:
        """Computes a plan and draws its tokens."""
        if plan.copies:
            self._copy(plan.copies)
        if not plan.work:
            return StepOutput()
        masks = self._drawing.start(plan)
        return self._drawing.draw(plan, self.compute(plan.work), masks)

    def compute(self, work: list[Work]) -> Logits:
        """Logits [rows, vocab]: for each work its scored positions, then the last if it draws; good until the next."""
        decodes = all(part.length == 1 and part.draws and not part.scores for part in work)
        kept = self._decodes if decodes else self._mixed
        return kept.get(self._shape(work)).run(work)

    def cost(self, work: list[Work]) -> tuple[int, int]:
        """Bytes that the work must move and operations that it must do, each weight, key and value read once."""
        arrays = MixedArrays(*self._shape(work), self._block_size, self._groups)
        arrays.fill(work)
        step, _ = self.describe(arrays.batch)
        return sum(cost.bytes for cost in step.costs), sum(cost.operations for cost in step.costs)

    def describe(self, batch: Batch) -> tuple[_C.Recording, _C.Tensor]:
        """The model called on a batch, as a recording that has not run, and the logits it will give."""
        with _C.record(self._model.backend, batch_invariant=self._batch_invariant) as step:
            logits = self._model(batch, self._kv)
        return step, logits

    def _shape(self, work: list[Work]) -> Shape:
        """Block tables are as wide as the longest sequence needs, rounded up: scratch memory follows their width, and
        shapes recur."""
        tokens = sum(part.length for part in work)
        rows = sum(part.scores + bool(part.draws) for part in work)
        longest = max(part.start + part.length for part in work)
        needed = -(-longest // self._block_size)
        return tokens, len(work), rows, min(self._max_blocks, max(16, 1 << (needed - 1).bit_length()))

    def _make_decode(self, shape: Shape) -> Compiled:
        return Compiled(self, DecodeArrays(shape[0], shape[3], self._block_size, self._groups))

    def _make_mixed(self, shape: Shape) -> Compiled:
        return Compiled(self, MixedArrays(*shape, self._block_size, self._groups))

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        """Copies whole blocks, in order: a later copy may read or overwrite what an earlier one wrote."""
        tensors = self._kv.tensors
        with _C.record(self._model.backend) as step:
            for source, destination in copies:
                for tensor in tensors:
                    _C.copy(tensor.narrow(0, destination, 1), tensor.narrow(0, source, 1))
        step.run()
