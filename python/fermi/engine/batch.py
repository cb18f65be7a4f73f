"""The int32 arrays that tell a model which tokens a step computes."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items

import numpy as np
import numpy.typing as npt

from fermi import _C
from fermi.engine.plan import Work
from fermi.models.inputs import Batch

__all__ = ["DecodeArrays", "MixedArrays"]

Integers = npt.NDArray[np.int32]


class DecodeArrays:
    """One token of each of ``size`` sequences, in memory that a compiled recording reads at every run.

    ``groups``: of layers, each with slots and block tables of its own.
    """

    def __init__(self, size: int, max_blocks: int, block_size: int, groups: int = 1) -> None:
        self._block_size = block_size
        self._columns: Integers = np.zeros((4, size), np.int32)
        self._slots: list[Integers] = [np.zeros(size, np.int32) for _ in range(groups)]
        self._block_tables: list[Integers] = [np.zeros((size, max_blocks), np.int32) for _ in range(groups)]
        token_ids, positions, rope_lengths, context_lengths = self._columns
        self.batch = Batch(
            token_ids=_C.Tensor.from_numpy(token_ids),
            positions=_C.Tensor.from_numpy(positions),
            rope_lengths=_C.Tensor.from_numpy(rope_lengths),
            slots=_tensors(self._slots),
            query_starts=_C.Tensor.from_numpy(np.arange(size + 1, dtype=np.int32)),
            context_lengths=_C.Tensor.from_numpy(context_lengths),
            block_tables=_tensors(self._block_tables),
            logit_rows=_C.Tensor.from_numpy(np.arange(size, dtype=np.int32)),
        )

    def fill(self, work: Items[Work]) -> None:
        """Takes in the sequences of a step of one token each."""
        self._columns[:3] = np.array([_column(part) for part in work], np.int32).T
        self._columns[3] = self._columns[1] + 1
        for group, block_tables in enumerate(self._block_tables):
            self._slots[group][:] = [_slot(part, group, self._block_size) for part in work]
            for row, part in enumerate(work):
                blocks = part.sequence.tables[group].blocks
                block_tables[row, : len(blocks)] = blocks


class MixedArrays:
    """Any ``tokens`` of ``sequences``, with logits of ``rows``, in memory that a compiled recording reads at every run.

    ``max_blocks``: of the longest sequence. ``groups``: of layers, each with slots and block tables of its own.
    """

    def __init__(
        self, tokens: int, sequences: int, rows: int, max_blocks: int, block_size: int, groups: int = 1
    ) -> None:
        self._block_size = block_size
        self._columns: Integers = np.empty((3 + groups, tokens), np.int32)
        self._starts: Integers = np.zeros(sequences + 1, np.int32)
        self._context_lengths: Integers = np.empty(sequences, np.int32)
        self._block_tables: Integers = np.zeros((groups, sequences, max_blocks), np.int32)
        self._rows: Integers = np.empty(rows, np.int32)
        token_ids, positions, rope_lengths, *slots = self._columns
        self.batch = Batch(
            token_ids=_C.Tensor.from_numpy(token_ids),
            positions=_C.Tensor.from_numpy(positions),
            rope_lengths=_C.Tensor.from_numpy(rope_lengths),
            slots=_tensors(slots),
            query_starts=_C.Tensor.from_numpy(self._starts),
            context_lengths=_C.Tensor.from_numpy(self._context_lengths),
            block_tables=_tensors(self._block_tables),
            logit_rows=_C.Tensor.from_numpy(self._rows),
        )

    def fill(self, work: Items[Work]) -> None:
        """Takes in the parts of a step."""
        starts, block_size = self._starts, self._block_size
        np.cumsum([part.length for part in work], out=starts[1:])
        self._context_lengths[:] = [part.start + part.length for part in work]
        self._rows[:] = list(_logit_rows(work))
        singles = [row for row, part in enumerate(work) if part.length == 1]
        if singles:
            columns = np.array([_column(work[row]) for row in singles], np.int32)
            self._columns[:3, starts[singles]] = columns.T
        token_ids, positions, rope_lengths, *slots = self._columns
        for row, part in enumerate(work):
            sequence, end = part.sequence, part.start + part.length
            if part.length > 1:
                span = slice(starts[row], starts[row + 1])
                position = np.arange(part.start, end, dtype=np.int32)
                place, offset = np.divmod(position, block_size)
                token_ids[span] = sequence.token_ids[part.start : end]
                positions[span] = position
                rope_lengths[span] = np.maximum(position + 1, sequence.rope_length)
            needed = -(-end // block_size)
            for group, table in enumerate(sequence.tables):
                blocks = self._block_tables[group, row, :needed]
                blocks[:] = table.blocks[:needed]
                if part.length > 1:
                    slots[group][span] = blocks[place] * block_size + offset
                else:
                    slots[group][starts[row]] = _slot(part, group, block_size)


def _tensors(arrays: Iterable[Integers]) -> tuple[_C.Tensor, ...]:
    return tuple(_C.Tensor.from_numpy(array) for array in arrays)


def _column(part: Work) -> tuple[int, int, int]:
    """Token id, position and rotary length of a part of one token."""
    sequence, position = part.sequence, part.start
    return sequence.token_ids[position], position, max(sequence.rope_length, position + 1)


def _slot(part: Work, group: int, block_size: int) -> int:
    """Where a part of one token keeps what a group of layers makes of it."""
    blocks, position = part.sequence.tables[group].blocks, part.start
    return blocks[position // block_size] * block_size + position % block_size


def _logit_rows(work: Items[Work]) -> Iterable[int]:
    """Which of a step's tokens need logits: of each part those that are scored, and the last if it draws."""
    start = 0
    for part in work:
        yield from range(start + part.scored - part.start, start + part.scored - part.start + part.scores)
        if part.draws:
            yield start + part.length - 1
        start += part.length
