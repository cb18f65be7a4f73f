"""The block pool under every order of operations: nothing is lost, freed twice or evicted in use."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fermi.engine.blocks import BlockPool, block_key, root_key
from fermi.engine.eviction import FIFO, LFU, LRU, eviction_policy

BLOCK = 2


class PoolMachine(RuleBasedStateMachine):
    """Chains of blocks over a small alphabet are built, looked up, forked and released in any order."""

    @initialize(total=st.integers(1, 8), policy=st.sampled_from(["lru", "lfu", "fifo", None]))
    def start(self, total: int, policy: str | None) -> None:
        self.pool = BlockPool(total, BLOCK, None if policy is None else eviction_policy(policy))
        self.chains: list[tuple[list[int], list[bytes], list[int]]] = []  # blocks, keys, tokens
        self.content: dict[int, tuple[int, ...]] = {}  # every token up to the end of a published block

    @rule(tokens=st.lists(st.integers(0, 1), min_size=BLOCK, max_size=5 * BLOCK), salt=st.integers(0, 1))
    def add_chain(self, tokens: list[int], salt: int) -> None:
        keys, key = [], root_key(salt)
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            key = block_key(key, tokens[start : start + BLOCK])
            keys.append(key)
        (found,) = self.pool.find(keys)
        for place, block in enumerate(found):
            assert self.content[block] == (salt, *tokens[: BLOCK * (place + 1)])
        needed = len(keys) - len(found)
        if needed > self.pool.available - self.pool.idle(found):
            return
        before = [block for chain, _, _ in self.chains for block in chain]
        self.pool.take(found)
        blocks = found + [self.pool.allocate() for _ in range(needed)]
        assert not set(blocks[len(found) :]) & set(before)  # nothing in use is handed out
        assert len(set(blocks)) == len(blocks)
        for place in range(len(found), len(blocks)):
            self.pool.publish(blocks[place], keys[place])
            if self.pool.key(blocks[place]) == keys[place]:
                self.content[blocks[place]] = (salt, *tokens[: BLOCK * (place + 1)])
        self.chains.append((blocks, keys, tokens))

    @precondition(lambda self: self.chains)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        blocks, keys, tokens = data.draw(st.sampled_from(self.chains))
        self.pool.share(blocks)
        self.chains.append((list(blocks), list(keys), tokens))

    @precondition(lambda self: self.chains)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        blocks, _, _ = self.chains.pop(data.draw(st.integers(0, len(self.chains) - 1)))
        self.pool.release(blocks)

    @precondition(lambda self: self.chains)
    @rule(data=st.data())
    def rewrite_last(self, data: st.DataObject) -> None:
        blocks, _, _ = data.draw(st.sampled_from(self.chains))
        if blocks and self.pool.references(blocks[-1]) == 1:
            self.pool.withdraw(blocks[-1])
            assert self.pool.key(blocks[-1]) is None

    @invariant()
    def conserved(self) -> None:
        stats = self.pool.stats()
        assert stats.free + stats.used + stats.cached == stats.total
        assert stats.free + stats.cached == self.pool.available
        held = [block for blocks, _, _ in self.chains for block in blocks]
        assert stats.used == len(set(held))
        for block in range(stats.total):
            assert self.pool.references(block) == held.count(block)
            key = self.pool.key(block)
            assert key is None or self.pool.find([key]) == [[block]]
        assert 0 <= stats.hit_rate <= 1

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            for blocks, _, _ in self.chains:
                self.pool.release(blocks)
            self.chains = []
            self.conserved()
            assert self.pool.available == self.pool.total
            assert sorted(self.pool.allocate() for _ in range(self.pool.total)) == list(range(self.pool.total))


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=150, stateful_step_count=40)


def published(pool: BlockPool, count: int) -> list[int]:
    blocks = [pool.allocate() for _ in range(count)]
    for block in blocks:
        pool.publish(block, bytes([block]))
    return blocks


def test_lru_evicts_what_was_released_first() -> None:
    pool = BlockPool(3, BLOCK, LRU())
    first, second, third = published(pool, 3)
    for block in (second, third, first):
        pool.release([block])
    assert [pool.allocate() for _ in range(3)] == [second, third, first]


def test_fifo_evicts_what_entered_first() -> None:
    pool = BlockPool(3, BLOCK, FIFO())
    first, second, third = published(pool, 3)
    for block in (second, third, first):
        pool.release([block])
    assert [pool.allocate() for _ in range(3)] == [first, second, third]


def test_lfu_evicts_what_was_found_least() -> None:
    pool = BlockPool(3, BLOCK, LFU())
    first, second, third = published(pool, 3)
    pool.release([first, second, third])
    for block, times in ((first, 2), (third, 1)):
        for _ in range(times):
            pool.take(pool.find([bytes([block])])[0])
            pool.release([block])
    assert [pool.allocate() for _ in range(3)] == [second, third, first]


def test_the_end_of_a_chain_is_evicted_before_its_start() -> None:
    pool = BlockPool(3, BLOCK, LRU())
    blocks = published(pool, 3)
    pool.release(blocks)
    assert [pool.allocate() for _ in range(3)] == blocks[::-1]


def test_the_version_tells_when_others_may_be_found() -> None:
    pool = BlockPool(1, BLOCK, LRU())
    versions = [pool.version]
    (block,) = published(pool, 1)
    versions.append(pool.version)
    pool.release([block])
    pool.take(pool.find([bytes([block])])[0])
    pool.release([block])
    assert pool.version == versions[-1]
    pool.allocate()  # evicts it
    versions.append(pool.version)
    assert len(set(versions)) == 3


def test_without_a_policy_nothing_is_kept() -> None:
    pool = BlockPool(2, BLOCK, None)
    blocks = published(pool, 2)
    pool.release(blocks)
    assert pool.find([bytes([blocks[0]])]) == [[]]
    assert pool.stats().free == 2


def test_the_hit_rate_counts_tokens() -> None:
    pool = BlockPool(4, BLOCK, LRU())
    pool.count(12, 4)
    pool.count(4, 0)
    assert pool.stats().hit_rate == 0.25


def test_a_block_is_not_released_twice() -> None:
    pool = BlockPool(2, BLOCK, LRU())
    block = pool.allocate()
    pool.release([block])
    with pytest.raises(ValueError, match="once too often"):
        pool.release([block])


def test_an_empty_pool_says_so() -> None:
    pool = BlockPool(1, BLOCK, LRU())
    pool.allocate()
    with pytest.raises(IndexError):
        pool.allocate()


def test_salts_part_chains() -> None:
    assert len({block_key(root_key(*salts), [1, 2]) for salts in [(0, 0), (0, 1), (1, 0), (-1, 0)]}) == 4
