"""The pages of sequences: matched in the prefix cache, allocated, found again, given back."""

from __future__ import annotations

from array import array
from collections import Counter

from workers.core.block_pool import BlockPool
from workers.core.block_pools import BlockPools
from workers.core.hashing import BlockId
from workers.core.request import Sequence


class SequencePages:
    """Hands out a pool's blocks. All of a sequence lie in one shard."""

    def __init__(self, pool: BlockPools) -> None:
        self.query_tokens = 0
        self.hit_tokens = 0
        self._pool = pool
        self._expected: dict[Sequence, list[BlockId]] = {}

    def expect(self, seq: Sequence) -> None:
        """It waits: what it will find cached is evicted last, in whichever shard."""
        seq.hasher.extend(seq.tokens)
        self._expected[seq] = ids = seq.hasher.ids[:]
        for pool in self._pool.shards:
            pool.expect(ids)

    def settle(self, seq: Sequence) -> None:
        """It waits no more."""
        ids = self._expected.pop(seq)
        for pool in self._pool.shards:
            pool.settle(ids)

    def allocate(self, seq: Sequence, *, beside: tuple[Sequence, ...] = ()) -> bool:
        """Match the prefix cache, then take pages for all tokens, leaving one to each sequence
        `beside` it. The block of the last token is never matched: that token must be computed, and
        not into a page that others read."""
        seq.hasher.extend(seq.tokens)
        num_tokens = len(seq.tokens) + seq.to_come
        ids = seq.hasher.ids[: (num_tokens - 1) // self._pool.block_size]
        total = self._pool.blocks_for(num_tokens)
        crowds = Counter(other.shard for other in beside)
        fitting = []
        for shard, pool in enumerate(self._pool.shards):
            matched = pool.match(ids)
            if pool.fits(matched, total - len(matched) + crowds[shard]):
                # A block that others hold and one that is computed again are alike: where most is
                # cached, unless that is where everybody is.
                fitting.append((pool.num_referenced - len(matched), shard, matched))
        if not fitting:
            return False
        _, seq.shard, matched = min(fitting)
        pool = self._of(seq)
        pool.acquire(matched)
        seq.blocks = array("i", matched + pool.allocate(total - len(matched)))
        seq.num_committed = len(matched)
        seq.num_cached = len(matched) * self._pool.block_size
        seq.begin_at(seq.num_cached)
        self.query_tokens += len(seq.tokens)
        self.hit_tokens += seq.num_cached
        return True

    def grow(self, seq: Sequence) -> bool:
        """A page for the next token to launch; False when there is none now."""
        if len(seq.blocks) * self._pool.block_size > seq.num_launched:
            return True
        pool = self._of(seq)
        if pool.num_available == 0:
            return False
        seq.blocks.extend(pool.allocate(1))
        return True

    def extend(self, seq: Sequence, num_blocks: int) -> bool:
        """Up to `num_blocks`; False when there are none now."""
        missing = max(0, num_blocks - len(seq.blocks))
        pool = self._of(seq)
        if missing > pool.num_available:
            return False
        seq.blocks.extend(pool.allocate(missing))
        return True

    def commit(self, seq: Sequence) -> None:
        """Make the blocks that have become full findable."""
        full = seq.num_computed // self._pool.block_size
        if full <= seq.num_committed:
            return  # most decode steps: no block has become full
        seq.hasher.extend(seq.tokens)
        new = slice(seq.num_committed, full)
        self._of(seq).commit(seq.blocks[new].tolist(), seq.hasher.ids[new])
        seq.num_committed = full

    def give_back(self, seq: Sequence) -> None:
        self._of(seq).release(seq.blocks)
        seq.blocks = array("i")
        seq.begin_at(0)
        seq.num_committed = 0

    def _of(self, seq: Sequence) -> BlockPool:
        return self._pool.shards[seq.shard]
