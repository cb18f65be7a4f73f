"""Which blocks sequences hold: what their tables take from the pool, share, offer for reuse and give back."""

from __future__ import annotations

from collections.abc import Sequence as Items

from fermi.engine.blocks import BlockPool
from fermi.engine.sequence import Sequence, Table
from fermi.engine.window import Window

__all__ = ["Copies", "Holdings"]

#: Blocks (from, to) to copy before a step, in this order.
Copies = list[tuple[int, int]]


class Holdings:
    """Fills and empties the block tables of sequences, one for each group of layers.

    Where a group looks through a window, a sequence gives back the blocks that have left it, and a prompt gets blocks
    for a window and a step's tokens at a time. What was given back may stay in the prefix cache; a prompt goes on after
    the longest start of which each group finds what it sees.

    Attributes:
        groups: how many there are.
        slides: whether any of them gives back blocks.
    """

    def __init__(self, pool: BlockPool, windows: Items[int], chunk: int) -> None:
        """``windows``: of each group, the tokens that a query sees, 0: all; ``chunk``: tokens of a step, at most."""
        self._pool = pool
        self._windows = [Window(window, pool.block_size) for window in windows]
        self._sliding = [
            (window, [group for group, other in enumerate(self._windows) if other == window])
            for window in dict.fromkeys(self._windows)
            if window.tokens
        ]
        self._chunk = chunk
        self.groups = len(self._windows)
        self.slides = bool(self._sliding)

    def most_blocks(self, length: int) -> int:
        """Blocks that a prompt of so many tokens may hold at a time."""
        return sum(window.most_blocks(length, self._chunk) for window in self._windows)

    def empty(self) -> list[Table]:
        """The tables of a sequence that holds nothing."""
        return [Table([]) for _ in self._windows]

    def admit(self, sequence: Sequence, spare: int, copies: Copies, *, reuse: bool) -> bool:
        """Gives a sequence that holds nothing blocks for all its tokens, or for as many as its windows let it hold at a
        time; False where there are too few. ``spare``: blocks to leave; ``reuse``: what the prefix cache has comes
        first, and counts as computed."""
        pool = self._pool
        if pool.available <= spare:
            return False
        found = self._find(sequence) if reuse and pool.caches else [[] for _ in self._windows]
        known = len(found[0])
        computed = min(known * pool.block_size, len(sequence.token_ids) - 1)
        tables = []
        for window, blocks in zip(self._windows, found, strict=True):
            dropped = window.first_block(computed)
            tables.append(Table([0] * dropped + blocks[dropped:], dropped))
        taken = [block for table in tables for block in table.held]
        rewritten = tables if computed < known * pool.block_size else []  # the last token's blocks
        shared = [table for table in rewritten if pool.references(table.blocks[-1]) > 0]
        missing = sum(self._ends(sequence, tables)) - known * self.groups
        needed = min(missing, pool.total - len(taken)) + len(shared)
        if needed + spare > pool.available - pool.idle(taken):
            return False
        pool.take(taken)
        sequence.tables = tables
        sequence.found = None
        sequence.computed = computed
        sequence.published = known - bool(rewritten)
        for table in rewritten:
            if table in shared:
                self.own(table, known - 1, copies)
            else:
                pool.withdraw(table.blocks[-1])
        self.extend(sequence, spare)
        return True

    def _find(self, sequence: Sequence) -> list[list[int]]:
        """The blocks of each group that the prefix cache has for the sequence's start, as far as all have them."""
        pool, length = self._pool, len(sequence.token_ids)
        if sequence.found is None or sequence.found[0] != pool.version:
            keys = (sequence.key(place, pool.block_size) for place in range(length // pool.block_size))
            sequence.found = pool.version, pool.find(keys, [window.chain for window in self._windows])
        return sequence.found[1]

    def extend(self, sequence: Sequence, spare: int) -> None:
        """Gives a prompt the blocks that its windows let it hold, as far as the pool has more than ``spare``."""
        tables = sequence.tables
        missing = [
            (place, group)
            for group, end in enumerate(self._ends(sequence, tables))
            for place in range(len(tables[group].blocks), end)
        ]
        if not missing:
            return
        there = max(0, self._pool.available - spare)
        if len(missing) > there:
            missing = sorted(missing)[:there]  # tokens are computed only as far as all groups have blocks
        for _, group in missing:  # a group's blocks lie side by side, if it can be
            tables[group].blocks.append(self._pool.allocate())

    def _ends(self, sequence: Sequence, tables: list[Table]) -> list[int]:
        """Of each table, the number of the block after the last that a prompt may hold."""
        length = len(sequence.token_ids)
        end = -(-length // self._pool.block_size)
        return [
            min(end, table.dropped + window.most_blocks(length, self._chunk))
            for window, table in zip(self._windows, tables, strict=True)
        ]

    def lacking(self, sequence: Sequence) -> list[Table]:
        """The tables in which the next token has no block that is the sequence's own."""
        place = sequence.computed // self._pool.block_size
        lacking = []
        for table in sequence.tables:
            if place == len(table.blocks) or self._pool.references(table.blocks[place]) > 1:
                lacking.append(table)
        return lacking

    def own(self, table: Table, place: int, copies: Copies) -> None:
        """Puts a block of its own in a place of a table: another one after the last, or a copy of a shared one."""
        own = self._pool.allocate()
        if place == len(table.blocks):
            table.blocks.append(own)
        else:
            shared, table.blocks[place] = table.blocks[place], own
            copies.append((shared, own))
            self._pool.release([shared])

    def share(self, parent: Sequence, child: Sequence) -> None:
        """Gives a sequence all that another one holds."""
        child.tables = [Table(table.blocks, table.dropped) for table in parent.tables]
        self._pool.share(child.held)

    def publish(self, sequence: Sequence) -> None:
        """Offers the blocks that are full now to the prefix cache."""
        pool = self._pool
        full = sequence.computed // pool.block_size
        if full == sequence.published:
            return
        if pool.caches:
            for place in range(sequence.published, full):
                for group, table in enumerate(sequence.tables):
                    pool.publish(table.blocks[place], sequence.key(place, pool.block_size), group)
        sequence.published = full

    def drop(self, sequence: Sequence) -> None:
        """Gives back the blocks that no query will see again."""
        for window, groups in self._sliding:
            first = window.first_block(sequence.computed)
            if first > sequence.tables[groups[0]].dropped:
                for group in groups:
                    self._pool.release(sequence.tables[group].drop(first))

    def release(self, sequence: Sequence) -> None:
        """Gives back all, and what was computed with it."""
        for table in sequence.tables:
            self._pool.release(table.held)
        sequence.tables = []
        sequence.computed = 0
        sequence.published = 0
