"""Numbered prefix-cache events of one incarnation, kept until they stand in Redis."""

from __future__ import annotations

from collections import deque

from workers.core.block_pools import BlockPools
from workers.core.events import KVEvent
from workers.core.hashing import BlockId

KEPT = 4096  # entries; when Redis is away for longer, routers take a snapshot instead
SNAPSHOT_BLOCKS = 4096  # fewer blocks in events are not worth a new snapshot
SNAPSHOT_ENTRIES = 2048  # well below what Redis keeps, so that snapshot and log overlap


class EventPublisher:
    """Numbers what the pool records. `pending` are the entries that nobody has acknowledged."""

    def __init__(self, pool: BlockPools) -> None:
        self.last_seq = 0
        self.acknowledged = 0  # the last seq that stands in Redis
        self.pending: deque[tuple[int, list[KVEvent]]] = deque(maxlen=KEPT)
        self._pool = pool
        self._changed = 0  # blocks in the events since the last snapshot
        self._worth = SNAPSHOT_BLOCKS
        self._snapshot_seq = 0

    def collect(self) -> None:
        """Move the pool's events, all of them as one entry, to `pending`."""
        events = self._pool.events.take()
        if events:
            self.last_seq += 1
            self.pending.append((self.last_seq, events))
            self._changed += sum(len(event.blocks) for event in events)

    def acknowledge(self, seq: int) -> None:
        """The entry `seq` stands in Redis. It may have left `pending` before, being too old."""
        self.acknowledged = seq
        if self.pending and self.pending[0][0] == seq:
            self.pending.popleft()

    @property
    def snapshot_is_due(self) -> bool:
        """The events since the last one fill as much as a snapshot does, or are very many."""
        since = self.last_seq - self._snapshot_seq
        return self._changed >= self._worth or since >= SNAPSHOT_ENTRIES

    def snapshot(self) -> tuple[int, list[BlockId]]:
        """Every block cached, after which event."""
        self.collect()
        return self.last_seq, self._pool.cached_ids()

    def saved(self, seq: int, blocks: int) -> None:
        """That snapshot is going to stand in Redis."""
        self._snapshot_seq = seq
        self._changed = 0
        self._worth = max(SNAPSHOT_BLOCKS, blocks)
