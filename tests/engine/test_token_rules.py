"""Rules on single tokens, alone and within a grammar."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from fermi.engine.sequence import Constraint
from fermi.engine.token_rules import TokenRules

VOCABULARY = 70  # more than two words


def allowed(constraint: Constraint) -> set[int]:
    masks = np.full((1, 3), 0xABCD, np.uint32)  # what was there before
    assert constraint.fill([constraint], masks) == {}
    bits = np.unpackbits(masks[0].view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits[:VOCABULARY]).tolist())


class Fixed:
    """A grammar of these tokens, one after the other; it fails after the last."""

    complete = False

    def __init__(self, *token_ids: int, free: bool = False) -> None:
        self.token_ids = list(token_ids)
        self.free = free

    def start(self) -> Constraint:
        return Fixed(*self.token_ids, free=self.free)

    def accept(self, token_id: int) -> None:
        assert self.token_ids.pop(0) == token_id

    @staticmethod
    def fill(constraints: Sequence[Fixed], masks: npt.NDArray[np.uint32]) -> dict[int, str]:
        errors = {}
        for row, each in enumerate(constraints):
            masks[row] = 0
            if each.token_ids:
                masks[row, each.token_ids[0] // 32] = 1 << (each.token_ids[0] % 32)
            else:
                errors[row] = "it is over"
        return errors


def test_only_what_is_allowed() -> None:
    constraint = TokenRules(allowed=[3, 40, 69, 1000]).start()
    assert not constraint.free
    assert allowed(constraint) == {3, 40, 69}
    constraint.accept(3)
    assert allowed(constraint) == {3, 40, 69}


def test_forbidden_sequences() -> None:
    everything = set(range(VOCABULARY))
    constraint = TokenRules(forbidden=[[5], [1, 2], [1, 1, 3], []]).start()
    assert allowed(constraint) == everything - {5}
    constraint.accept(1)
    assert allowed(constraint) == everything - {5, 2}
    constraint.accept(1)
    assert allowed(constraint) == everything - {5, 2, 3}
    constraint.accept(7)
    assert allowed(constraint) == everything - {5}


def test_each_sequence_has_its_own_state() -> None:
    rules = TokenRules(forbidden=[[1, 2]])
    first, second = rules.start(), rules.start()
    first.accept(1)
    masks = np.zeros((2, 3), np.uint32)
    assert first.fill([first, second], masks) == {}
    assert [bool(mask[0] & 4) for mask in masks] == [False, True]


def test_within_a_grammar() -> None:
    constraint = TokenRules(allowed=[4, 64], forbidden=[[64, 4]], grammar=Fixed(64, 4)).start()
    assert allowed(constraint) == {64}
    constraint.accept(64)
    masks = np.zeros((1, 3), np.uint32)
    assert list(constraint.fill([constraint], masks)) == [0]  # the grammar wants what is forbidden
    free = TokenRules(allowed=[4], grammar=Fixed(64, free=True)).start()
    assert allowed(free) == {4}


def test_a_grammar_that_fails() -> None:
    constraint = TokenRules(allowed=[4], grammar=Fixed()).start()
    assert constraint.fill([constraint], np.zeros((1, 3), np.uint32)) == {0: "it is over"}
    with pytest.raises(IndexError):
        constraint.accept(4)
