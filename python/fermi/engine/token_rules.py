"""Rules on single tokens: only some may come, and some sequences of them may not."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from fermi.engine.sequence import Constraint, Grammar

__all__ = ["TokenRules"]

Words = npt.NDArray[np.uint32]


class TokenRules:
    """Bounds the tokens of a request, besides a grammar where there is one."""

    def __init__(
        self,
        *,
        allowed: Collection[int] = (),
        forbidden: Sequence[Sequence[int]] = (),
        grammar: Grammar | None = None,
    ) -> None:
        """``allowed``: no other token may come; none bounds nothing. ``forbidden``: sequences that the output may not
        hold: the last token of one may not follow the others."""
        self.allowed = np.array(sorted(allowed), np.int64)
        self.forbidden = [tuple(each) for each in forbidden if each]
        self._grammar = grammar

    def start(self) -> Constraint:
        """The state before the first new token."""
        return _Ruled(self, None if self._grammar is None else self._grammar.start())


class _Ruled:
    """The rules in one sequence: its latest tokens, and the grammar's state."""

    def __init__(self, rules: TokenRules, inner: Constraint | None) -> None:
        self._rules = rules
        self._inner = inner
        self._reach = max(map(len, rules.forbidden), default=1) - 1
        self._latest: tuple[int, ...] = ()

    @property
    def free(self) -> bool:
        """Whether any token may come next."""
        return False

    @property
    def complete(self) -> bool:
        """Whether nothing but an end can come next."""
        return self._inner is not None and self._inner.complete

    def accept(self, token_id: int) -> None:
        """The token was drawn."""
        if self._reach:
            self._latest = (*self._latest, token_id)[-self._reach :]
        if self._inner is not None:
            self._inner.accept(token_id)

    @staticmethod
    def fill(constraints: Sequence[_Ruled], masks: Words) -> dict[int, str]:
        """As `Constraint.fill`."""
        errors = {}
        for row, constraint in enumerate(constraints):
            why = constraint._fill(masks[row : row + 1])
            if why is not None:
                errors[row] = why
        return errors

    def _fill(self, mask: Words) -> str | None:
        """Writes one row [1, words]; says why nothing may come."""
        if self._inner is None or self._inner.free:
            mask[:] = 2**32 - 1
        else:
            failed = self._inner.fill([self._inner], mask)
            if failed:
                return failed[0]
        row = mask[0]
        if len(self._rules.allowed):
            row &= _bits(self._rules.allowed, len(row))
        latest = self._latest
        banned = [each[-1] for each in self._rules.forbidden if latest[len(latest) - len(each) + 1 :] == each[:-1]]
        if banned:
            row &= ~_bits(np.array(banned, np.int64), len(row))
        return None if row.any() else "no token may come next"


def _bits(token_ids: npt.NDArray[np.int64], words: int) -> Words:
    """A mask [words] with these tokens alone."""
    bits = np.zeros(words * 32, np.bool_)
    bits[token_ids[token_ids < len(bits)]] = True
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)
