"""Counts the tokens of one reply's thoughts, and says which tokens end them in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Budget", "BudgetRules"]

#: Tokens beyond the budget that may complete a character of several bytes.
SPARE = 3


@dataclass(frozen=True, slots=True)
class BudgetRules:
    """What the thoughts of a reply may take.

    Attributes:
        tokens: of the thinking block, its end included.
        opening, closing: its tags in UTF-8.
        end: token ids that end it; ``end_of_line``: the same where the thoughts have just ended a line.
        bytes_of: what a token adds to the text.
        opened: the prompt ends inside the block; otherwise it counts where the reply begins with ``opening``.
    """

    tokens: int
    opening: bytes
    closing: bytes
    end: tuple[int, ...]
    end_of_line: tuple[int, ...]
    bytes_of: Callable[[int], bytes]
    opened: bool


class Budget:
    """The thoughts of one sequence.

    Attributes:
        forced: the token that must come next, None where any may.
    """

    __slots__ = ("_inside", "_left", "_rules", "_tail", "_used", "forced")

    def __init__(self, rules: BudgetRules) -> None:
        self._rules: BudgetRules | None = rules
        self._inside = rules.opened
        self._tail = b""
        self._used = 0
        self._left: list[int] = []  # of the forced tokens, the last first
        self.forced: int | None = None
        self._force_in_time(rules)

    def accept(self, token_id: int) -> None:
        """The token was drawn."""
        rules = self._rules
        if rules is None:
            return
        if self.forced is not None:
            self.forced = self._left.pop() if self._left else None
            self._rules = rules if self.forced is not None else None
            return
        self._used += 1
        self._tail += rules.bytes_of(token_id)
        if not self._inside:
            start = self._tail.lstrip()
            if start.startswith(rules.opening):
                self._inside = True
                self._tail = start[len(rules.opening) :]
            elif not rules.opening.startswith(start):  # the reply has no thoughts
                self._rules = None
        if self._inside:
            if rules.closing in self._tail:
                self._rules = None
            else:
                self._tail = self._tail[-max(4, len(rules.closing)) :]
                self._force_in_time(rules)

    def _force_in_time(self, rules: BudgetRules) -> None:
        end = rules.end_of_line if self._tail.endswith(b"\n") else rules.end
        over = self._used + len(end) - rules.tokens
        if self._inside and over >= 0 and (over >= SPARE or _whole(self._tail)):
            *rest, self.forced = reversed(end)
            self._left = rest


def _whole(tail: bytes) -> bool:
    """Whether a text does not end within a character."""
    for back in range(1, min(4, len(tail)) + 1):
        byte = tail[-back]
        if byte < 0x80:
            return True
        if byte >= 0xC0:  # the first byte of a character: how many follow
            return back >= (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
    return True
