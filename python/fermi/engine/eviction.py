"""Which unreferenced block of the prefix cache leaves first when memory is needed."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Protocol

__all__ = ["FIFO", "LFU", "LRU", "Eviction", "eviction_policy"]


class Eviction(Protocol):
    """Keeps the blocks that are cached and unreferenced, and picks among them."""

    def published(self, block: int) -> None:
        """The block's content entered the cache."""

    def hit(self, block: int) -> None:
        """The block's content was found by another sequence."""

    def add(self, block: int) -> None:
        """The last reference to the block went: it may be evicted from now on."""

    def remove(self, block: int) -> None:
        """The block is referenced again, or is no longer cached."""

    def evict(self) -> int:
        """Removes and returns the next victim; KeyError when there is none."""

    def __len__(self) -> int:
        """Blocks that may be evicted."""


class LRU:
    """The block that was released longest ago."""

    def __init__(self) -> None:
        self._order: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def published(self, block: int) -> None:
        pass

    def hit(self, block: int) -> None:
        pass

    def add(self, block: int) -> None:
        self._order[block] = None

    def remove(self, block: int) -> None:
        del self._order[block]

    def evict(self) -> int:
        return self._order.popitem(last=False)[0]


class _Ranked(ABC):
    """The block of the lowest rank, by a heap whose outdated entries are skipped."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], int]] = []
        self._ranks: dict[int, tuple[int, int]] = {}  # of evictable blocks
        self._ticks = 0

    def __len__(self) -> int:
        return len(self._ranks)

    @abstractmethod
    def _rank(self, block: int) -> tuple[int, int]:
        """What is compared: the block of the lowest leaves first."""

    def _tick(self) -> int:
        self._ticks += 1
        return self._ticks

    def add(self, block: int) -> None:
        rank = self._rank(block)
        self._ranks[block] = rank
        heapq.heappush(self._heap, (rank, block))
        if len(self._heap) > 2 * len(self._ranks) + 16:
            self._heap = [(rank, block) for block, rank in self._ranks.items()]
            heapq.heapify(self._heap)

    def remove(self, block: int) -> None:
        del self._ranks[block]

    def evict(self) -> int:
        while self._heap:
            rank, block = heapq.heappop(self._heap)
            if self._ranks.get(block) == rank:
                del self._ranks[block]
                return block
        raise KeyError("no block may be evicted")


class LFU(_Ranked):
    """The block that was found least often; among equals the one released longest ago."""

    def __init__(self) -> None:
        super().__init__()
        self._hits: dict[int, int] = {}

    def published(self, block: int) -> None:
        self._hits[block] = 0

    def hit(self, block: int) -> None:
        self._hits[block] += 1

    def _rank(self, block: int) -> tuple[int, int]:
        return self._hits[block], self._tick()


class FIFO(_Ranked):
    """The block whose content entered the cache first."""

    def __init__(self) -> None:
        super().__init__()
        self._entered: dict[int, int] = {}

    def published(self, block: int) -> None:
        self._entered[block] = self._tick()

    def hit(self, block: int) -> None:
        pass

    def _rank(self, block: int) -> tuple[int, int]:
        return self._entered[block], 0


def eviction_policy(name: str) -> Eviction:
    """``lru``, ``lfu`` or ``fifo``; KeyError for anything else."""
    policies: dict[str, type[LRU] | type[LFU] | type[FIFO]] = {"lru": LRU, "lfu": LFU, "fifo": FIFO}
    return policies[name]()
