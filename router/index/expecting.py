"""A mirror that believes its own router: what was sent to a replica counts as cached at once.

Between a decision and the event that confirms it lies a whole prefill; requests of a burst that
share a prefix would spread over all replicas meanwhile. Expectations stand beside the mirror, end
with the event that confirms or retracts them, and are counted.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from router.index.expectations import Expectations, Honesty
from router.index.memory import MemoryIndex
from workers.core.clock import Clock
from workers.core.events import EventKind, KVEvent
from workers.core.hashing import BlockId

EXPECTED_SHARE = 8  # a generation of expectations may have this part of the mirror's blocks


class ExpectingIndex:
    """A PrefixIndex. count(), held() and len() speak of what replicas confirmed."""

    def __init__(self, clock: Clock, max_blocks: int = 1 << 20, ttl_s: float = 60.0) -> None:
        self.changes = 0
        self._mirror = MemoryIndex(max_blocks)
        self._expected = Expectations(clock, max(1, max_blocks // EXPECTED_SHARE), ttl_s)

    @property
    def honesty(self) -> Honesty:
        return self._expected.honesty

    @property
    def evicted(self) -> int:
        return self._mirror.evicted

    def apply(self, replica: str, events: Sequence[KVEvent]) -> None:
        self.changes += 1
        bit = self._mirror.slots.find(replica)
        for event in events if bit else ():
            if event.kind is EventKind.STORED:
                self._expected.confirm(bit, event.blocks)
            elif event.kind is EventKind.REMOVED:
                self._expected.retract(bit, event.blocks)
            else:
                self._expected.retract_all(bit)
        self._mirror.apply(replica, events)

    def replace(self, replica: str, blocks: Sequence[BlockId]) -> Generator[None]:
        """What the snapshot does not know yet stays expected."""
        slots, expected = self._mirror.slots, self._expected
        before = slots.find(replica)
        for _ in self._mirror.replace(replica, blocks):
            yield
            before = slots.find(replica)  # it may have been met first meanwhile
        self.changes += 1
        bit = slots.find(replica)
        expected.move(before, bit)
        pending = expected.pending(bit)
        unknown = set(self._mirror.lacking(bit, pending))
        expected.confirm(bit, [block for block in pending if block not in unknown])

    def clear(self, replica: str) -> None:
        self.changes += 1
        self._expected.retract_all(self._mirror.slots.find(replica))
        self._mirror.clear(replica)

    def expect(self, replica: str, blocks: Sequence[BlockId]) -> Sequence[BlockId]:
        self.changes += 1
        bit = self._mirror.slots.of(replica)
        news = self._expected.add(bit, self._mirror.lacking(bit, blocks))
        self._mirror.touch(blocks)
        return news

    def match(self, blocks: Sequence[BlockId]) -> Mapping[str, int]:
        """Leading blocks that are known or expected, for each replica."""
        return self._mirror.match(blocks, self._expected.masks())

    def count(self, replica: str) -> int:
        return self._mirror.count(replica)

    def held(self, replica: str) -> set[BlockId]:
        return self._mirror.held(replica)

    def __len__(self) -> int:
        return len(self._mirror)

    def check_integrity(self) -> None:
        self._mirror.check_integrity()
        self._expected.check_integrity()
