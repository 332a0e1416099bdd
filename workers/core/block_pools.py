"""The block pools of a replica: one for each shard, numbered through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from workers.core.block_pool import BlockPool
from workers.core.events import EventKind, EventLog
from workers.core.eviction import EvictionName, make_eviction
from workers.core.hashing import BlockId


class BlockPools:
    """`shards` pools of equal size. A shard is a group of ranks with pages of its own
    (data-parallel attention): the blocks of a sequence all lie in one. Mostly there is one."""

    def __init__(
        self, num_blocks: int, block_size: int, shards: int = 1, eviction: EvictionName = "lru"
    ) -> None:
        assert num_blocks % shards == 0, f"{num_blocks} blocks for {shards} shards"
        each = num_blocks // shards
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.events = EventLog() if shards == 1 else UnionLog()
        self.shards = [
            BlockPool(
                each,
                block_size,
                make_eviction(eviction, each),
                first=shard * each,
                events=self.events,
            )
            for shard in range(shards)
        ]

    @property
    def most_blocks(self) -> int:
        """Of one sequence."""
        return self.num_blocks // len(self.shards)

    @property
    def num_available(self) -> int:
        return sum(pool.num_available for pool in self.shards)

    @property
    def num_referenced(self) -> int:
        return self.num_blocks - self.num_available

    @property
    def num_idle(self) -> int:
        return sum(pool.num_idle for pool in self.shards)

    def cached_ids(self) -> list[BlockId]:
        """Every id that can be hit now, in no order."""
        return list({block_id for pool in self.shards for block_id in pool.cached_ids()})

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def check_integrity(self, owners: Iterable[Sequence[int]]) -> None:
        """As BlockPool's; no owner has blocks of two shards."""
        of_shard: list[list[Sequence[int]]] = [[] for _ in self.shards]
        for blocks in owners:
            homes = {block // self.most_blocks for block in blocks}
            assert len(homes) <= 1, f"blocks of the shards {homes} in one sequence"
            for home in homes:
                of_shard[home].append(blocks)
        for pool, own in zip(self.shards, of_shard, strict=True):
            pool.check_integrity(own)


class UnionLog(EventLog):
    """Of several pools: a block is stored with the first that has it, removed with the last."""

    def __init__(self) -> None:
        super().__init__()
        self._holders: Counter[BlockId] = Counter()

    def record(self, kind: EventKind, blocks: Collection[BlockId]) -> None:
        for block in blocks:
            self._holders[block] += 1 if kind is EventKind.STORED else -1
            if self._holders[block] == (1 if kind is EventKind.STORED else 0):
                super().record(kind, (block,))
            if not self._holders[block]:
                del self._holders[block]
