"""Numbered prefix-cache events of one incarnation, kept until they stand in Redis."""

from __future__ import annotations

from collections import deque

from workers.core.block_pools import BlockPools
from workers.core.events import KVEvent

KEPT = 4096  # entries; when Redis is away for longer, routers take a snapshot instead


class EventPublisher:
    """Numbers what the pool records. `pending` are the entries that nobody has acknowledged."""

    def __init__(self, pool: BlockPools) -> None:
        self.last_seq = 0
        self.pending: deque[tuple[int, list[KVEvent]]] = deque(maxlen=KEPT)
        self._pool = pool

    def collect(self) -> None:
        """Move the pool's events, all of them as one entry, to `pending`."""
        events = self._pool.events.take()
        if events:
            self.last_seq += 1
            self.pending.append((self.last_seq, events))
