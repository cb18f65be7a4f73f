"""The masks of a step's bounded sequences, filled on a thread of their own while the model computes."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby

import numpy as np
import numpy.typing as npt

from fermi.engine.sequence import Constraint, Sequence

__all__ = ["Masks", "StepMasks", "Words"]

Words = npt.NDArray[np.uint32]


class StepMasks:
    """The masks of one step, which may still be on their way."""

    def __init__(self, rows: dict[Sequence, int], filled: Future[dict[int, str]] | None, words: Words) -> None:
        self._rows = rows
        self._filled = filled
        self._words = words

    def of(self, sequence: Sequence) -> Words | None:
        """What may come next in a sequence; None where any token may. Waits until it is known.

        ValueError says why its grammar cannot go on.
        """
        row = self._rows.get(sequence)
        if row is None or self._filled is None:
            return None
        errors = self._filled.result()
        if row in errors:
            raise ValueError(errors[row])
        words: Words = self._words[row]
        return words


class Masks:
    """Fills masks, without work for steps that need none. The thread starts with the first that does."""

    def __init__(self, vocab_size: int) -> None:
        self._width = (vocab_size + 31) // 32
        self._words: Words = np.zeros((0, self._width), np.uint32)
        self._thread: ThreadPoolExecutor | None = None

    def start(self, sequences: Iterable[Sequence]) -> StepMasks:
        """Starts on the masks of these sequences. Those of the step before are void."""
        bounded: list[tuple[Sequence, Constraint]] = []
        for sequence in sequences:
            if sequence.constraint is not None and not sequence.constraint.free:
                bounded.append((sequence, sequence.constraint))
        bounded.sort(key=lambda pair: type(pair[1]).__qualname__)  # those of one class are filled together
        rows = {sequence: row for row, (sequence, _) in enumerate(bounded)}
        if not bounded:
            return StepMasks(rows, None, self._words)
        if len(self._words) < len(bounded):
            self._words = np.zeros((len(bounded), self._width), np.uint32)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "fermi-masks")
        words = self._words[: len(bounded)]
        return StepMasks(rows, self._thread.submit(_fill, [each for _, each in bounded], words), words)


def _fill(constraints: list[Constraint], words: Words) -> dict[int, str]:
    """Fills each mask, those of one class together; returns by row why some could not be."""
    errors: dict[int, str] = {}
    first = 0
    for kind, group in groupby(constraints, type):
        together = list(group)
        for row, why in _fill_together(kind, together, words[first : first + len(together)]).items():
            errors[first + row] = why
        first += len(together)
    return errors


def _fill_together(kind: type[Constraint], constraints: list[Constraint], words: Words) -> dict[int, str]:
    try:
        return kind.fill(constraints, words)
    except Exception as error:
        if len(constraints) == 1:
            return {0: str(error)}
    errors: dict[int, str] = {}
    for row, constraint in enumerate(constraints):  # which of them it was shows when each is asked alone
        for why in _fill_together(kind, [constraint], words[row : row + 1]).values():
            errors[row] = why
    return errors
