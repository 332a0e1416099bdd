"""The router's mirror: block id -> bit mask of replicas, in one dict.

A block costs 110 to 190 bytes: 64 of id, and the dict's entry at its usual load, which is lower
once blocks leave and come. Masks are shared. At the cap those blocks go first that were longest
neither stored nor routed to; a request for them merely finds a shorter prefix than there is.

Events have blocks by the dozen or by the hundred: on CPython 3.11 plain loops are faster than map,
zip and update over a dozen, and as fast over hundreds. Work that grows with the whole index is cut
into pieces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from itertools import islice, repeat

from router.index.slots import Slots, each_bit
from workers.core.events import EventKind, KVEvent
from workers.core.hashing import BlockId

BYTES_PER_BLOCK = 200
EVICT_SHARE = 64  # a full index makes room for this share of itself at once
MASKS_KEPT = 2048  # masks that blocks share
PIECE = 8192  # blocks looked at or stored between two chances for others to run

Hints = Sequence[Mapping[BlockId, int]]  # masks beside the index's own


class MemoryIndex:
    """A PrefixMirror in this process. len() counts blocks of lost replicas until they are swept."""

    def __init__(self, max_blocks: int = 1 << 20) -> None:
        assert max_blocks > 0
        self.slots = Slots()
        self.evicted = 0
        self._max_blocks = max_blocks
        self._masks: dict[BlockId, int] = {}
        self._counts: Counter[int] = Counter()  # by bit
        self._joins: dict[int, _Join] = {}
        self._shared: dict[int, int] = {}
        self._sweeping = 0
        self._unswept: list[BlockId] = []

    def apply(self, replica: str, events: Sequence[KVEvent]) -> None:
        for event in events:
            bit = self.slots.of(replica)
            if event.kind is EventKind.STORED:
                self._store(bit, event.blocks)
            elif event.kind is EventKind.REMOVED:
                self._remove(bit, event.blocks)
            else:
                self.clear(replica)
        self._sweep()

    def replace(self, replica: str, blocks: Sequence[BlockId]) -> Generator[None]:
        """Fills a new bit a piece at a time; what match() says changes at once, at the end."""
        bit = self.slots.draw()
        filled = False
        try:
            for start in range(0, len(blocks), PIECE):
                self._store(bit, blocks[start : start + PIECE])
                yield
            self._counts.pop(self.slots.find(replica), None)
            self.slots.give(replica, bit)
            filled = True
        finally:
            if not filled:
                self._counts.pop(bit, None)
                self.slots.drop(bit)
        self._sweep()

    def clear(self, replica: str) -> None:
        """It matches nothing from now on; its bit leaves the masks in pieces."""
        self._counts.pop(self.slots.take(replica), None)
        self._sweep()

    def match(self, blocks: Sequence[BlockId], hints: Hints = ()) -> Mapping[str, int]:
        """One walk: a replica drops out at the first block that neither it nor a hint has."""
        get, at = self._masks.get, self.slots.at
        found: dict[str, int] = {}
        alive = self.slots.live
        for depth, block in enumerate(blocks):
            mask = get(block, 0)
            if mask != alive:
                mask &= alive
                if mask == alive:
                    continue
                for hint in hints:
                    mask |= hint.get(block, 0) & alive
                if depth and mask != alive:
                    gone = at(alive ^ mask, depth)
                    found = found | gone if found else gone
                if not mask:
                    return found
                alive = mask
        if not blocks:
            return found
        return found | at(alive, len(blocks)) if found else at(alive, len(blocks))

    def touch(self, blocks: Sequence[BlockId]) -> None:
        """A request was routed by these: as good as stored again, once the cap is in sight."""
        if not self._crowded:
            return
        ids = dict.fromkeys(blocks)
        held = list(map(self._masks.pop, ids, repeat(0)))
        self._masks.update((block, mask) for block, mask in zip(ids, held, strict=True) if mask)

    def lacking(self, bit: int, blocks: Sequence[BlockId]) -> list[BlockId]:
        """Those of which the masks do not have the bit."""
        get = self._masks.get
        return [block for block in blocks if not get(block, 0) & bit]

    def count(self, replica: str) -> int:
        return self._counts[self.slots.find(replica)]

    def held(self, replica: str) -> set[BlockId]:
        """Walks the whole index."""
        bit = self.slots.find(replica)
        return {block for block, mask in self._masks.items() if mask & bit}

    def __len__(self) -> int:
        return len(self._masks)

    def check_integrity(self) -> None:
        """Counts agree with masks, every bit in a mask is known, nothing is above the cap."""
        counts: Counter[int] = Counter()
        for mask in self._masks.values():
            assert mask > 0, "a block that nobody holds"
            counts.update(each_bit(mask & ~self.slots.gone))
        assert counts == +self._counts, f"counts {self._counts}, masks say {counts}"
        assert not (self._sweeping & ~self.slots.gone)
        assert len(self._masks) <= self._max_blocks
        self.slots.check_integrity()

    @property
    def _crowded(self) -> bool:
        return len(self._masks) > self._max_blocks // 2

    def _store(self, bit: int, blocks: Sequence[BlockId]) -> None:
        """Once the cap is in sight a block known before leaves the dict and comes in again: the
        dict's order is the age."""
        masks, join, crowded, gained = self._masks, self._join(bit), self._crowded, 0
        for block in blocks:
            if block not in masks:
                masks[block] = bit
                gained += 1
                continue
            held = masks.pop(block) if crowded else masks[block]
            joined = masks[block] = join[held]
            gained += joined != held
        self._counts[bit] += gained
        if len(masks) > self._max_blocks:
            self._evict()

    def _join(self, bit: int) -> _Join:
        join = self._joins.get(bit)
        if join is None:
            join = self._joins[bit] = _Join(bit, self._shared)
        return join

    def _evict(self) -> None:
        """In bulk: a dict that lost its oldest entries is slow to say what its oldest one is."""
        surplus = len(self._masks) - self._max_blocks + self._max_blocks // EVICT_SHARE
        oldest = list(islice(self._masks, surplus))
        self.evicted += surplus
        for mask, times in Counter(map(self._masks.pop, oldest)).items():
            for bit in each_bit(mask & ~self.slots.gone):
                self._counts[bit] -= times

    def _remove(self, bit: int, blocks: Sequence[BlockId]) -> None:
        masks, lost = self._masks, 0
        for block in blocks:
            mask = masks.get(block, 0)
            if mask == bit:  # mostly: nobody else has it
                del masks[block]
                lost += 1
            elif mask & bit:
                masks[block] = mask ^ bit
                lost += 1
        self._counts[bit] -= lost

    def _sweep(self) -> None:
        """Takes the bits that are gone out of the next piece of the masks, if there are any."""
        if not self._unswept:
            if not self.slots.gone:
                return
            self._sweeping, self._unswept = self.slots.gone, list(self._masks)
        masks, stays = self._masks, ~self._sweeping
        for block in self._unswept[-PIECE:]:
            mask = masks.get(block, 0)
            if mask & self._sweeping:
                if mask & stays:
                    masks[block] = mask & stays
                else:
                    del masks[block]
        del self._unswept[-PIECE:]
        if not self._unswept:
            self.slots.swept(self._sweeping)
            self._sweeping = 0


class _Join(dict[int, int]):
    """mask -> mask | bit. Equal masks are one object, or each block would have its own."""

    def __init__(self, bit: int, shared: dict[int, int]) -> None:
        super().__init__()
        self._bit = bit
        self._shared = shared

    def __missing__(self, mask: int) -> int:
        for known in (self, self._shared):
            if len(known) >= MASKS_KEPT:
                known.clear()
        joined = mask | self._bit
        joined = self[mask] = self._shared.setdefault(joined, joined)
        return joined
