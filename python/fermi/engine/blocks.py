"""The pool of KV cache blocks: reference counts, and reuse of blocks whose tokens come again."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from fermi.engine.eviction import LRU, Eviction

__all__ = ["BlockPool", "PoolStats", "block_key", "root_key"]


def root_key(*salts: int) -> bytes:
    """The key before the first block of a chain; chains with different salts never meet."""
    return _digest(array("q", salts).tobytes())


def block_key(parent: bytes, token_ids: Iterable[int]) -> bytes:
    """The key of a full block: 128 bits over its tokens and, through its parent's key, over every token before."""
    return _digest(parent + array("i", token_ids).tobytes())


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class PoolStats:
    """How many blocks are free (empty), used (referenced), cached (unreferenced but reusable), and the cache's success.

    Attributes:
        queried_tokens: tokens of prompts that were looked up; ``hit_tokens`` of them were found.
        evictions: cached blocks that were given up for memory.
    """

    total: int
    free: int
    used: int
    cached: int
    queried_tokens: int
    hit_tokens: int
    evictions: int

    @property
    def hit_rate(self) -> float:
        """The found share of the tokens looked up, from 0 to 1."""
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else 0.0


class BlockPool:
    """Hands out blocks 0 … ``total`` - 1 of ``block_size`` tokens each.

    A block is free, used (it has references) or cached (it has none, but its content has a key and may be found by it).
    Every method is O(blocks it names). Without an eviction policy nothing is cached.

    Attributes:
        version: another one as soon as other blocks may be found.
    """

    def __init__(self, total: int, block_size: int, eviction: Eviction | None) -> None:
        self.total = total
        self.block_size = block_size
        self.caches = eviction is not None
        self._eviction = eviction if eviction is not None else LRU()
        self._free = list(range(total - 1, -1, -1))
        self._references = [0] * total
        self._keys: list[tuple[bytes, int] | None] = [None] * total
        self._blocks: dict[tuple[bytes, int], int] = {}  # by key and group of layers
        self.version = 0
        self._queried_tokens = 0
        self._hit_tokens = 0
        self._evictions = 0

    @property
    def available(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free) + len(self._eviction)

    def stats(self) -> PoolStats:
        """Counts of now and since the start."""
        free, cached = len(self._free), len(self._eviction)
        return PoolStats(
            total=self.total,
            free=free,
            used=self.total - free - cached,
            cached=cached,
            queried_tokens=self._queried_tokens,
            hit_tokens=self._hit_tokens,
            evictions=self._evictions,
        )

    def references(self, block: int) -> int:
        """How many sequences hold the block."""
        return self._references[block]

    def key(self, block: int) -> bytes | None:
        """The key under which the block's content is found."""
        found = self._keys[block]
        return None if found is None else found[0]

    def has(self, key: bytes) -> bool:
        """Whether a block of this key is kept, for layers that see farthest. Unlike the rest, any thread may ask."""
        return (key, 0) in self._blocks

    def allocate(self) -> int:
        """A block of no particular content with one reference. IndexError when none is available."""
        if self._free:
            block = self._free.pop()
        elif len(self._eviction):
            block = self._evict()
        else:
            raise IndexError("no block is available")
        self._references[block] = 1
        return block

    def _evict(self) -> int:
        block = self._eviction.evict()
        self._forget(block)
        self._evictions += 1
        return block

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._blocks[key]
            self._keys[block] = None
            self.version += 1

    def share(self, blocks: Iterable[int]) -> None:
        """Adds a reference to blocks that have one."""
        for block in blocks:
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Drops one reference to each; what is then unreferenced is kept if it has a key, else free.

        The last blocks go first, so that the start of a chain, useful to more prompts, is evicted after its end."""
        for block in reversed(blocks):
            count = self._references[block] - 1
            if count < 0:
                raise ValueError(f"block {block} is released once too often")
            self._references[block] = count
            if count == 0:
                if self._keys[block] is None:
                    self._free.append(block)
                else:
                    self._eviction.add(block)

    def publish(self, block: int, key: bytes, group: int = 0) -> None:
        """Makes a full, referenced block findable. The first block of a key and a group of layers stays the one that
        is found."""
        own = key, group
        if self.caches and own not in self._blocks and self._keys[block] is None:
            self._blocks[own] = block
            self._keys[block] = own
            self._eviction.published(block)
            self.version += 1

    def withdraw(self, block: int) -> None:
        """Makes a referenced block unfindable, as its content is about to be written."""
        self._forget(block)

    def find(self, keys: Iterable[bytes], lasts: Sequence[int | None] = (None,)) -> list[list[int]]:
        """The blocks of the longest known start of a chain, for each group; nothing is counted or referenced.

        ``lasts``: of each group, how many blocks at its end must be known for a start to be so; None: all. -1 stands
        for the others.
        """
        found: list[list[int]] = [[] for _ in lasts]
        known = [0] * len(lasts)  # blocks in a row
        usable = 0  # blocks of the longest start so far
        for length, key in enumerate(keys, 1):
            fits = True
            for group, last in enumerate(lasts):
                block = self._blocks.get((key, group), -1)
                found[group].append(block)
                known[group] = 0 if block < 0 else known[group] + 1
                if known[group] < length and (last is None or known[group] < last):
                    fits = False
                    if last is None:
                        return [row[:usable] for row in found]
            if fits:
                usable = length
        return [row[:usable] for row in found]

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of the blocks are unreferenced, so that taking them uses up available ones."""
        return sum(1 for block in blocks if self._references[block] == 0)

    def take(self, blocks: Sequence[int]) -> None:
        """References found blocks."""
        for block in blocks:
            if self._references[block] == 0:
                self._eviction.remove(block)
            self._references[block] += 1
            self._eviction.hit(block)

    def count(self, queried_tokens: int, hit_tokens: int) -> None:
        """Counts a look-up."""
        self._queried_tokens += queried_tokens
        self._hit_tokens += hit_tokens
