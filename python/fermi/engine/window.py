"""Which blocks of a sequence a model still looks at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Window", "reach_of"]


def reach_of(windows: Iterable[int]) -> int:
    """Tokens that the layer which sees most sees, of each layer's own (0: all); 0 as soon as one sees all.

    A sequence has one block table for all layers, so that a block goes only when no layer sees it. To free what the
    sliding layers of a mixed model no longer see would take a pool, a table and slots for each group of layers with
    the same window, and a prefix cache that asks each of them.
    """
    reaches = tuple(windows)
    return max(reaches) if reaches and min(reaches) > 0 else 0


@dataclass(frozen=True, slots=True)
class Window:
    """``tokens`` that a query sees, itself included; 0: all."""

    tokens: int
    block_size: int

    def first_block(self, position: int) -> int:
        """The first block that the query at a position, or a later one, sees."""
        return max(0, position - self.tokens + 1) // self.block_size if self.tokens else 0

    def most_blocks(self, length: int, chunk: int = 1) -> int:
        """Blocks that a sequence of that length needs at a time, at most, if it is computed in chunks of so many."""
        every = -(-length // self.block_size)
        if not self.tokens:
            return every
        span = self.tokens - 1 + chunk  # tokens in a row, wherever a block begins
        return min(every, (span + 2 * self.block_size - 2) // self.block_size)

    @property
    def chain(self) -> int | None:
        """The last blocks of a prompt's start that must be cached to go on after it; None: every one."""
        return -(-self.tokens // self.block_size) if self.tokens else None
