"""A scheduler whose sequences read memory of their own, though the prefix cache saves them their prompts."""

from __future__ import annotations

from fermi.engine.plan import Plan
from fermi.engine.scheduler import Scheduler
from fermi.engine.sequence import Sequence

__all__ = ["OwnBlocks"]


class OwnBlocks(Scheduler):
    """Copies what it finds in the prefix cache instead of sharing it.

    A long context is computed once for all sequences of a case, and decoding reads as much as with unrelated prompts.
    """

    def _admit(self, sequence: Sequence, plan: Plan) -> bool:
        blocks = -(-len(sequence.token_ids) // self.pool.block_size) * self.holdings.groups
        if self.pool.available < 2 * blocks or not super()._admit(sequence, plan):
            return False
        for table in sequence.tables:
            for place in range(table.dropped, sequence.published):
                self.holdings.own(table, place, plan.copies)
        return True
