"""The router's mirror: block id -> bit mask of replica slots, in one dict.

A block costs about 200 bytes: 49 of id, about 28 of mask and the dict's entry at its usual load.
Above the cap the blocks longest not stored anew go first; a request for them merely finds a shorter
prefix than there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from workers.core.events import EventKind, KVEvent
from workers.core.hashing import BlockId

BYTES_PER_BLOCK = 200
EVICT_SHARE = 16  # a full index makes room for this share of itself at once


class MemoryIndex:
    """A PrefixMirror in this process. Slots are small integers, reused only after clear()."""

    def __init__(self, max_blocks: int = 1 << 20) -> None:
        assert max_blocks > 0
        self._max_blocks = max_blocks
        self._masks: dict[BlockId, int] = {}
        self._slots: dict[str, int] = {}
        self._names: list[str | None] = []
        self._counts: list[int] = []

    def apply(self, replica: str, events: Sequence[KVEvent]) -> None:
        slot = self._slot(replica)
        for event in events:
            if event.kind is EventKind.STORED:
                self._store(slot, event.blocks)
            elif event.kind is EventKind.REMOVED:
                self._remove(slot, event.blocks)
            else:
                self._wipe(slot)

    def clear(self, replica: str) -> None:
        """Walks the whole index (about 0.1 s for a million blocks): a replica died or restarted."""
        slot = self._slots.pop(replica, None)
        if slot is not None:
            self._wipe(slot)
            self._names[slot] = None

    def match(self, blocks: Sequence[BlockId]) -> dict[str, int]:
        if not blocks:
            return {}
        alive = self._masks.get(blocks[0], 0)
        found: dict[str, int] = {}
        for depth in range(1, len(blocks)):
            if not alive:
                return found
            mask = alive & self._masks.get(blocks[depth], 0)
            if mask != alive:
                self._note(alive & ~mask, depth, found)
                alive = mask
        self._note(alive, len(blocks), found)
        return found

    def count(self, replica: str) -> int:
        slot = self._slots.get(replica)
        return 0 if slot is None else self._counts[slot]

    def __len__(self) -> int:
        return len(self._masks)

    def check_integrity(self) -> None:
        """Counts agree with masks, free slots have no bits, nothing is above the cap."""
        counts = [0] * len(self._names)
        for mask in self._masks.values():
            assert mask > 0, "a block that nobody holds"
            for slot in _bits(mask):
                counts[slot] += 1
        assert counts == self._counts, f"counts {self._counts}, masks say {counts}"
        for slot, name in enumerate(self._names):
            assert name is None or self._slots[name] == slot
            assert name is not None or counts[slot] == 0, f"free slot {slot} has bits"
        assert len(self._masks) <= self._max_blocks

    def _slot(self, replica: str) -> int:
        slot = self._slots.get(replica)
        if slot is None:
            if None in self._names:
                slot = self._names.index(None)
                self._names[slot] = replica
            else:
                slot = len(self._names)
                self._names.append(replica)
                self._counts.append(0)
            self._slots[replica] = slot
        return slot

    def _store(self, slot: int, blocks: Sequence[BlockId]) -> None:
        bit = 1 << slot
        for block in blocks:
            mask = self._masks.pop(block, 0)  # out and in again: the dict's order is the age
            self._masks[block] = mask | bit
            if not mask & bit:
                self._counts[slot] += 1
        if len(self._masks) > self._max_blocks:
            self._evict()

    def _evict(self) -> None:
        """In bulk: a dict that lost its oldest entries is slow to say what its oldest one is."""
        surplus = len(self._masks) - self._max_blocks + self._max_blocks // EVICT_SHARE
        for block in list(islice(self._masks, surplus)):
            for holder in _bits(self._masks.pop(block)):
                self._counts[holder] -= 1

    def _remove(self, slot: int, blocks: Sequence[BlockId]) -> None:
        bit = 1 << slot
        for block in blocks:
            mask = self._masks.get(block, 0)
            if mask & bit:
                self._counts[slot] -= 1
                self._drop(block, mask & ~bit)

    def _wipe(self, slot: int) -> None:
        bit = 1 << slot
        held = [(block, mask) for block, mask in self._masks.items() if mask & bit]
        for block, mask in held:
            self._drop(block, mask & ~bit)
        self._counts[slot] = 0

    def _drop(self, block: BlockId, mask: int) -> None:
        if mask:
            self._masks[block] = mask
        else:
            del self._masks[block]

    def _note(self, mask: int, depth: int, found: dict[str, int]) -> None:
        for slot in _bits(mask):
            name = self._names[slot]
            assert name is not None, f"free slot {slot} matched"
            found[name] = depth


def _bits(mask: int) -> list[int]:
    """Positions of the set bits."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found
