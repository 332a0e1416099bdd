"""A mirror that believes its own router: what was sent to a replica counts as cached at once.

Between a decision and the event that confirms it lies a whole prefill; requests of a burst that
share a prefix would spread over all replicas meanwhile. Expectations live in two generations of
`ttl_s` each: young ones are added to, old ones are dropped when the young take their place. An
event that says "removed" retracts them earlier.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.index.memory import MemoryIndex
from workers.core.clock import Clock
from workers.core.events import EventKind, KVEvent
from workers.core.hashing import BlockId

EXPECTED_SHARE = 8  # each generation may hold this part of the mirror's blocks


class ExpectingIndex:
    """A PrefixIndex. count() and len() speak of what replicas confirmed."""

    def __init__(self, clock: Clock, max_blocks: int = 1 << 20, ttl_s: float = 10.0) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._max_expected = max(1, max_blocks // EXPECTED_SHARE)
        self._mirror = MemoryIndex(max_blocks)
        self._young = MemoryIndex(self._max_expected)
        self._old = MemoryIndex(self._max_expected)
        self._born = clock.now()

    def apply(self, replica: str, events: Sequence[KVEvent]) -> None:
        self._mirror.apply(replica, events)
        gone = [event for event in events if event.kind is not EventKind.STORED]
        if gone:
            self._young.apply(replica, gone)
            self._old.apply(replica, gone)

    def expect(self, replica: str, blocks: Sequence[BlockId]) -> None:
        self._age()
        self._young.apply(replica, [KVEvent(EventKind.STORED, tuple(blocks))])

    def clear(self, replica: str) -> None:
        for index in (self._mirror, self._young, self._old):
            index.clear(replica)

    def match(self, blocks: Sequence[BlockId]) -> dict[str, int]:
        """The longest of what is known and what is expected, for each replica."""
        self._age()
        found = self._mirror.match(blocks)
        for expected in (self._young, self._old):
            for replica, depth in expected.match(blocks).items():
                found[replica] = max(depth, found.get(replica, 0))
        return found

    def count(self, replica: str) -> int:
        return self._mirror.count(replica)

    def __len__(self) -> int:
        return len(self._mirror)

    def _age(self) -> None:
        age = self._clock.now() - self._born
        if age < self._ttl_s:
            return
        # after two lifetimes of quiet the young ones are too old as well
        self._old = self._young if age < 2 * self._ttl_s else MemoryIndex(self._max_expected)
        self._young = MemoryIndex(self._max_expected)
        self._born = self._clock.now()
