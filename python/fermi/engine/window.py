"""Which blocks of a sequence a model still looks at."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Window"]


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
