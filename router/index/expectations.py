"""Blocks that replicas were sent and have not stored yet, in two generations.

The young ones are added to; when they are `ttl_s` old they become the old ones, and what was old
is dropped as stale. So an expectation lives one to two lifetimes, unless an event ends it earlier.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workers.core.clock import Clock
from workers.core.hashing import BlockId


@dataclass(slots=True)
class Honesty:
    """What became of expectations, each one block on one replica. The sum of the last three and
    what is still open is `expected`."""

    expected: int = 0
    confirmed: int = 0  # the replica stored it
    retracted: int = 0  # it removed it, or is gone
    stale: int = 0  # never heard of again


class Expectations:
    """Masks of blocks, as the mirror's. An expectation is in one generation only."""

    def __init__(self, clock: Clock, most: int, ttl_s: float) -> None:
        self.honesty = Honesty()
        self._clock = clock
        self._most = most
        self._ttl_s = ttl_s
        self._born = clock.now()
        self._young: dict[BlockId, int] = {}
        self._old: dict[BlockId, int] = {}

    def masks(self) -> tuple[dict[BlockId, int], ...]:
        """The generations, where they hold anything."""
        self._age()
        if self._old:
            return self._young, self._old
        return (self._young,) if self._young else ()

    def add(self, bit: int, blocks: Iterable[BlockId]) -> list[BlockId]:
        """Too many at once make the old ones stale before their time. Returns those that were not
        expected yet."""
        self._age()
        young, old = self._young, self._old
        news: list[BlockId] = []
        for block in blocks:
            mask = young.get(block, 0)
            if mask & bit:
                continue
            young[block] = mask | bit
            if not (old and _take(old, block, bit)):
                news.append(block)
        self.honesty.expected += len(news)
        if len(young) > self._most:
            self._turn()
        return news

    def confirm(self, bit: int, blocks: Iterable[BlockId]) -> None:
        self.honesty.confirmed += self._end(bit, blocks)

    def retract(self, bit: int, blocks: Iterable[BlockId]) -> None:
        self.honesty.retracted += self._end(bit, blocks)

    def retract_all(self, bit: int) -> None:
        """The replica is gone, and its bit with it."""
        for masks in (self._young, self._old):
            held = [block for block, mask in masks.items() if mask & bit]
            self.honesty.retracted += sum(_take(masks, block, bit) for block in held)

    def pending(self, bit: int) -> list[BlockId]:
        """What the replica is expected to store."""
        return [b for masks in self.masks() for b, mask in masks.items() if mask & bit]

    def move(self, bit: int, to: int) -> None:
        """The replica has another bit now."""
        for masks in (self._young, self._old):
            for block, mask in masks.items():
                if mask & bit:
                    masks[block] = mask ^ bit | to

    def check_integrity(self) -> None:
        ended = self.honesty.confirmed + self.honesty.retracted + self.honesty.stale
        pending = _weight(self._young) + _weight(self._old)
        assert self.honesty.expected == ended + pending, f"{self.honesty}, {pending} open"
        for block in self._young.keys() & self._old.keys():
            assert not self._young[block] & self._old[block], "expected twice"

    def _end(self, bit: int, blocks: Iterable[BlockId]) -> int:
        ended = 0
        for masks in (self._young, self._old):
            if masks and not masks.keys().isdisjoint(blocks):
                for block in blocks:  # as _take(), without a call for each
                    mask = masks.get(block, 0)
                    if mask == bit:
                        del masks[block]
                        ended += 1
                    elif mask & bit:
                        masks[block] = mask ^ bit
                        ended += 1
        return ended

    def _age(self) -> None:
        age = self._clock.now() - self._born
        if age >= self._ttl_s:
            self._turn()
        if age >= 2 * self._ttl_s:  # the young ones are too old as well
            self._turn()

    def _turn(self) -> None:
        self.honesty.stale += _weight(self._old)
        self._old, self._young = self._young, {}
        self._born = self._clock.now()


def _take(masks: dict[BlockId, int], block: BlockId, bit: int) -> bool:
    """Takes the bit off the block; False if it was not there."""
    mask = masks.get(block, 0)
    if not mask & bit:
        return False
    if mask == bit:
        del masks[block]
    else:
        masks[block] = mask ^ bit
    return True


def _weight(masks: dict[BlockId, int]) -> int:
    return sum(map(int.bit_count, masks.values()))
