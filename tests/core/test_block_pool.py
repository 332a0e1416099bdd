"""The pool against a model: any interleaving of what sequences do to it."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.core.block_pool import BlockPool
from workers.core.events import EventKind
from workers.core.hashing import block_ids

BLOCKS, SIZE = 12, 4
IDS = block_ids(range(4 * SIZE * BLOCKS), b"", SIZE)


class PoolMachine(RuleBasedStateMachine):
    """Holders own block lists; the mirror is what an index makes of the events."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS, SIZE)
        self.holders: list[list[int]] = []
        self.mirror: set[bytes] = set()

    @rule(count=st.integers(1, 4))
    def allocate(self, count: int) -> None:
        if count > self.pool.num_available:
            with pytest.raises(AssertionError):
                self.pool.allocate(count)
            return
        taken = {block for blocks in self.holders for block in blocks}
        fresh = self.pool.allocate(count)
        assert not taken & set(fresh), "a block in use was given away"
        assert len(set(fresh)) == count
        self.holders.append(fresh)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        blocks = data.draw(st.sampled_from(self.holders))
        first = data.draw(st.integers(0, len(blocks) - 1))
        some = blocks[first : first + data.draw(st.integers(1, 3))]
        ids = st.lists(st.sampled_from(IDS[:16]), min_size=len(some), max_size=len(some))
        self.pool.commit(some, data.draw(ids))

    @rule(start=st.integers(0, 15), length=st.integers(1, 6))
    def share(self, start: int, length: int) -> None:
        ids = IDS[start : start + length]
        blocks = self.pool.match(ids)
        assert len(blocks) <= len(ids)
        if blocks:
            self.pool.acquire(blocks)
            self.holders.append(blocks)
            assert self.pool.match(ids) == blocks, "referenced prefixes stay"

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.holders) - 1))
        self.pool.release(self.holders.pop(index))

    @invariant()
    def accounts_balance(self) -> None:
        self.pool.check_integrity(self.holders)
        for event in self.pool.events.take():
            if event.kind is EventKind.STORED:
                assert not self.mirror & set(event.blocks)
                self.mirror |= set(event.blocks)
            else:
                assert set(event.blocks) <= self.mirror
                self.mirror -= set(event.blocks)
        assert self.mirror == set(self.pool.cached_ids()), "events do not tell the table"


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=120, stateful_step_count=40)


def test_least_recently_used_goes_first_and_tails_before_heads() -> None:
    pool = BlockPool(4, SIZE)
    first, second = pool.allocate(2), pool.allocate(2)
    pool.commit([*first, *second], IDS[:4])
    pool.release(first)
    pool.release(second)
    assert pool.allocate(1) == [first[1]], "the tail of the oldest"
    assert pool.match(IDS[:2]) == [first[0]]
    assert pool.allocate(1) == [first[0]]


def test_double_release_is_our_bug_and_says_so() -> None:
    pool = BlockPool(2, SIZE)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(blocks)


def test_integrity_check_notices_a_leak() -> None:
    pool = BlockPool(2, SIZE)
    pool.allocate(1)
    with pytest.raises(AssertionError, match="1 refs, 0 owners"):
        pool.check_integrity([])


def test_fits_counts_idle_matches_once() -> None:
    pool = BlockPool(3, SIZE)
    blocks = pool.allocate(2)
    pool.commit(blocks, IDS[:2])
    pool.release(blocks)
    matched = pool.match(IDS[:2])
    assert pool.fits(matched, 1)
    assert not pool.fits(matched, 2), "the matched blocks cannot be evicted for the new ones"
