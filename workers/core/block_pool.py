"""The pool of KV blocks and the prefix cache over them.

A block is in exactly one of three places:

    free  --allocate-->  referenced  --release, no id-->  free
                         referenced  --release, has id->  idle (still a prefix-cache hit)
    idle  --acquire--->  referenced
    idle  --allocate (evicted: id forgotten)--> referenced
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from workers.core.events import EventKind, EventLog
from workers.core.eviction import LRU, EvictionPolicy
from workers.core.hashing import BlockId


class BlockPool:
    """Ref-counted blocks `first`..first+num_blocks-1 of `block_size` tokens, found again by their
    ids."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        policy: EvictionPolicy | None = None,
        *,
        first: int = 0,
        events: EventLog | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.events = EventLog() if events is None else events
        self._blocks = range(first, first + num_blocks)
        self._refs = [0] * self._blocks.stop
        self._free = list(reversed(self._blocks))
        self._idle: EvictionPolicy = LRU() if policy is None else policy
        self._block_of: dict[BlockId, int] = {}
        self._id_of: list[BlockId | None] = [None] * self._blocks.stop

    @property
    def num_available(self) -> int:
        """Blocks that allocate() can give, evicting if need be."""
        return len(self._free) + len(self._idle)

    @property
    def num_referenced(self) -> int:
        return self.num_blocks - self.num_available

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def cached_ids(self) -> list[BlockId]:
        """Every id that can be hit now, in no order."""
        return list(self._block_of)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def match(self, ids: Sequence[BlockId]) -> list[int]:
        """Blocks of the longest cached prefix of `ids`. References nothing: acquire() before the
        next await."""
        found = []
        for block in map(self._block_of.get, ids):
            if block is None:
                break
            found.append(block)
        return found

    def fits(self, matched: Sequence[int], num_new: int) -> bool:
        """Whether `matched` can be acquired and `num_new` more allocated after it."""
        idle = sum(not self._refs[block] for block in matched)
        return num_new <= self.num_available - idle

    def expect(self, ids: Sequence[BlockId]) -> None:
        """A prompt of these blocks waits: they are evicted last, but not referenced. Until
        settle(), of the same ids."""
        self._idle.expect(ids)

    def settle(self, ids: Sequence[BlockId]) -> None:
        self._idle.settle(ids)

    def acquire(self, blocks: Iterable[int]) -> None:
        """Add one reference to each: a cached prefix that a sequence is going to read."""
        refs, id_of, wanted = self._refs, self._id_of, []
        for block in blocks:
            if not refs[block]:
                block_id = id_of[block]
                assert block_id is not None, f"block {block} is free"
                wanted.append(block_id)
            refs[block] += 1
        if wanted:
            self._idle.wanted(wanted)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks of undefined content, referenced once. Needs count <= num_available."""
        assert count <= self.num_available, f"{count} blocks wanted, {self.num_available} there"
        kept = max(0, len(self._free) - count)
        blocks = self._free[kept:]
        del self._free[kept:]
        blocks.reverse()
        if len(blocks) < count:
            blocks += self._evict(count - len(blocks))
        refs = self._refs
        for block in blocks:
            refs[block] = 1
        return blocks

    def commit(self, blocks: Sequence[int], ids: Sequence[BlockId]) -> None:
        """Make complete, referenced blocks findable, each by its id. Where an id is taken (two
        sequences computed the same prefix at once) the first stays and the other is freed plainly
        when released."""
        refs, block_of, id_of = self._refs, self._block_of, self._id_of
        news: list[BlockId] = []
        for block, block_id in zip(blocks, ids, strict=True):
            assert refs[block], f"block {block} is not referenced"
            if block_id not in block_of and id_of[block] is None:
                block_of[block_id] = block
                id_of[block] = block_id
                news.append(block_id)
        self.events.record(EventKind.STORED, news)

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each, the tail first."""
        idle: list[BlockId] = []
        refs, id_of, free = self._refs, self._id_of, self._free
        for block in reversed(blocks):
            left = refs[block] - 1
            assert left >= 0, f"block {block} released twice"
            refs[block] = left
            if not left:
                block_id = id_of[block]
                if block_id is None:
                    free.append(block)
                else:
                    idle.append(block_id)
        if idle:
            self._idle.idle(idle)

    def _evict(self, count: int) -> list[int]:
        block_of, id_of, blocks = self._block_of, self._id_of, []
        ids = self._idle.victims(count)
        for block_id in ids:
            block = block_of.pop(block_id)
            id_of[block] = None
            blocks.append(block)
        self.events.record(EventKind.REMOVED, ids)
        return blocks

    def check_integrity(self, owners: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless `owners` (the block lists of all who hold some) explain every
        reference and each block is in exactly one place."""
        expected = Counter(block for blocks in owners for block in blocks)
        free = set(self._free)
        named = {block: self._id_of[block] for block in self._blocks if self._id_of[block]}
        idle = {block for block, block_id in named.items() if block_id in self._idle}
        assert len(free) == len(self._free), "a block is free twice"
        assert len(idle) == len(self._idle), "a block is idle twice, or has no id"
        for block in self._blocks:
            refs = self._refs[block]
            assert refs == expected[block], f"block {block}: {refs} refs, {expected[block]} owners"
            places = (refs > 0) + (block in free) + (block in idle)
            assert places == 1, f"block {block} is in {places} places"
            assert block not in free or block not in named, f"block {block} free with id"
        assert {block: block_id for block_id, block in self._block_of.items()} == named, "tables"
