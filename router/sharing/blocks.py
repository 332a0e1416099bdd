"""An index that keeps what this router newly expects, until other routers are told.

Requests of a burst that share a prefix come through all routers. One that does not know where
another sent the prefix lets it be computed once more, until a whole prefill later the worker says
that it has it. The ids cost each router as much as the worker's event will: once more the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from router.index.expecting import ExpectingIndex
from workers.core.clock import Clock
from workers.core.hashing import BlockId

MOST_BLOCKS = 4096  # that wait to be told: 64 KiB. Beyond, the oldest are left out


class ToldIndex(ExpectingIndex):
    """expect() is for what this router decides, hear() for what others did."""

    def __init__(self, clock: Clock, max_blocks: int = 1 << 20, ttl_s: float = 60.0) -> None:
        super().__init__(clock, max_blocks, ttl_s)
        self._untold: deque[tuple[str, Sequence[BlockId]]] = deque()
        self._num_untold = 0

    def expect(self, replica: str, blocks: Sequence[BlockId]) -> Sequence[BlockId]:
        news = super().expect(replica, blocks)[:MOST_BLOCKS]
        if news:
            self._untold.append((replica, news))
            self._num_untold += len(news)
            while self._num_untold > MOST_BLOCKS:
                self._num_untold -= len(self._untold.popleft()[1])
        return news

    def hear(self, replica: str, blocks: Sequence[BlockId]) -> None:
        super().expect(replica, blocks)

    def take_untold(self) -> list[tuple[str, Sequence[BlockId]]]:
        """What to tell now; it counts as told."""
        untold = list(self._untold)
        self._untold.clear()
        self._num_untold = 0
        return untold
