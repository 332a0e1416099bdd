"""Which unreferenced block gives way first. The pool tells a policy what becomes idle and what is
wanted again, by id; the policy only ranks. Every operation takes constant time for each block.

Sequences give their blocks back tail first, so what was built on a prefix goes before it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from itertools import islice
from typing import Literal, Protocol, TypeAlias, TypeVar

from workers.core.hashing import BlockId

T = TypeVar("T")
Order: TypeAlias = OrderedDict[BlockId, T]  # the oldest first

EvictionName = Literal["adaptive", "lru"]


class EvictionPolicy(Protocol):
    def idle(self, ids: Sequence[BlockId]) -> None:
        """The last reference to these cached blocks is gone: blocks of one sequence, tail first."""

    def wanted(self, ids: Sequence[BlockId]) -> None:
        """Idle blocks are referenced again, or their content is void."""

    def victims(self, count: int) -> list[BlockId]:
        """Choose and forget so many idle blocks; there are as many."""

    def expect(self, ids: Sequence[BlockId]) -> None:
        """A prompt of these blocks waits for its turn."""

    def settle(self, ids: Sequence[BlockId]) -> None:
        """It waits no more: what it uses was wanted by now."""

    def __len__(self) -> int: ...

    def __contains__(self, block_id: object) -> bool: ...


def make_eviction(name: EvictionName, num_blocks: int) -> EvictionPolicy:
    """For a pool of so many blocks."""
    return Adaptive(num_blocks) if name == "adaptive" else LRU()


class LRU:
    """Least recently used."""

    def __init__(self) -> None:
        self._order: Order[None] = OrderedDict()

    def idle(self, ids: Sequence[BlockId]) -> None:
        order = self._order  # update() takes twice as long as this
        for block_id in ids:
            order[block_id] = None

    def wanted(self, ids: Sequence[BlockId]) -> None:
        order = self._order
        for block_id in ids:
            del order[block_id]

    def victims(self, count: int) -> list[BlockId]:
        chosen = list(islice(self._order, count))
        self.wanted(chosen)
        return chosen

    def expect(self, ids: Sequence[BlockId]) -> None: ...

    def settle(self, ids: Sequence[BlockId]) -> None: ...

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, block_id: object) -> bool:
        return block_id in self._order


PROTECTED = 0.9  # of the pool at most; what is met first needs some room as well
HALVED = 16  # pools of blocks given, after which hits that were counted count half
REMEMBERED = 4  # ids of blocks that are gone, as a multiple of the pool (about 150 bytes each)
BEHIND = 0.01  # of LRU's hits that protecting may lose before LRU is followed


class Adaptive:
    """Two queues, each least recently used first. Blocks used before, and those built mostly on
    such, are protected: a conversation that came back once comes back again. What is met first goes
    before them, so that a scan of new prompts passes through without taking the cache with it.

        met first ----> fresh ----> victim, if there is one
                          ^
                          | beyond PROTECTED of the pool, the oldest
        met before -> protected ----> victim, when nothing is fresh

    What prompts that wait here are going to read is spared while there is anything else: that much
    of the future is known.

    Blocks that are gone are remembered for a while by their ids, and count as met before: a gap
    longer than the fresh ones' stay does not make a conversation a stranger. Whether all this pays
    is seen by following both rules beside the pool: where LRU has more hits the older of both
    queues' heads goes. After 2Q, segmented LRU, and the duels of adaptive insertion (DIP).
    """

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._fresh: Order[int] = OrderedDict()  # turn in which it became idle
        self._protected: Order[int] = OrderedDict()
        self._spared: Order[int] = OrderedDict()  # would have gone, but is expected
        self._expected: Counter[BlockId] = Counter()
        self._turn = 0
        self._met = Met(num_blocks)
        self._protecting = Shadow(num_blocks)
        self._given = 0
        self._worth_it = True

    def idle(self, ids: Sequence[BlockId]) -> None:
        before, first = self._met.idle(ids)
        if len(before) >= len(first):
            before, first = ids, ()
        self._protecting.idle(ids, before, first)
        self._duel(len(ids))
        turn = self._turn = self._turn + 1
        fresh, protected = self._fresh, self._protected
        for block_id in first:
            fresh[block_id] = turn
        for block_id in before:
            protected[block_id] = turn
        if self._worth_it:
            _move(len(protected) - int(PROTECTED * self._num_blocks), protected, fresh)

    def _duel(self, given: int) -> None:
        protecting, lru = self._protecting, self._met
        self._given += given
        if self._given > HALVED * self._num_blocks:
            self._given = 0
            protecting.hits /= 2
            lru.hits /= 2
        self._worth_it = protecting.hits >= (1 - BEHIND) * lru.hits

    def wanted(self, ids: Sequence[BlockId]) -> None:
        protected, fresh = self._protected, self._fresh
        for block_id in ids:
            if block_id in protected:
                del protected[block_id]
            elif block_id in fresh:
                del fresh[block_id]
            else:
                del self._spared[block_id]

    def victims(self, count: int) -> list[BlockId]:
        expected, spared = self._expected, self._spared
        chosen: list[BlockId] = []
        while len(chosen) < count:
            queue, most = self._next(count - len(chosen))
            for block_id in _oldest(queue, most):
                turn = queue.pop(block_id)
                if block_id in expected and queue is not spared:
                    spared[block_id] = turn
                else:
                    chosen.append(block_id)
        return chosen

    def _next(self, count: int) -> tuple[Order[int], int]:
        """Whose turn it is to give blocks, and how many before that is asked again."""
        fresh, protected = self._fresh, self._protected
        if fresh and protected and not self._worth_it:
            older = fresh[next(iter(fresh))] <= protected[next(iter(protected))]
            return fresh if older else protected, 1
        return fresh or protected or self._spared, count

    def expect(self, ids: Sequence[BlockId]) -> None:
        self._expected.update(ids)

    def settle(self, ids: Sequence[BlockId]) -> None:
        expected, fresh, spared = self._expected, self._fresh, self._spared
        for block_id in ids:
            left = expected.pop(block_id) - 1
            if left:
                expected[block_id] = left
            elif block_id in spared:  # from the root, so that the tail is first again
                fresh[block_id] = spared.pop(block_id)
                fresh.move_to_end(block_id, last=False)

    def __len__(self) -> int:
        return len(self._fresh) + len(self._protected) + len(self._spared)

    def __contains__(self, block_id: object) -> bool:
        return block_id in self._fresh or block_id in self._protected or block_id in self._spared


class Met:
    """Blocks of the past by when they were idle last, the oldest first. LRU would keep the last
    `num_blocks` of them; REMEMBERED times as many before these are but remembered."""

    def __init__(self, num_blocks: int) -> None:
        self.hits: float = 0  # of LRU, as Shadow's
        self._num_blocks = num_blocks
        self._kept: Order[None] = OrderedDict()
        self._gone: Order[None] = OrderedDict()

    def idle(self, ids: Sequence[BlockId]) -> tuple[Sequence[BlockId], Sequence[BlockId]]:
        """Blocks of one sequence, tail first. Returns those met before, and the others."""
        kept, gone = self._kept, self._gone
        before, first, leading = [], [], 0
        for block_id in ids:
            if block_id in kept:
                kept.move_to_end(block_id)
                before.append(block_id)
                leading += 1
                continue
            leading = 0
            kept[block_id] = None
            if block_id in gone:
                del gone[block_id]
                before.append(block_id)
            else:
                first.append(block_id)
        self.hits += leading
        _move(len(kept) - self._num_blocks, kept, gone)
        for block_id in _oldest(gone, len(self) - (1 + REMEMBERED) * self._num_blocks):
            del gone[block_id]
        return before, first

    def __len__(self) -> int:
        return len(self._kept) + len(self._gone)


class Shadow:
    """What a pool of that size would have kept of the same blocks if it protected a part of those
    met before; `hits` counts leading blocks of prompts, as nothing else is a prefix."""

    def __init__(self, num_blocks: int) -> None:
        self.hits: float = 0
        self._num_blocks = num_blocks
        self._fresh: Order[None] = OrderedDict()
        self._protected: Order[None] = OrderedDict()

    def idle(
        self, ids: Sequence[BlockId], before: Sequence[BlockId], first: Sequence[BlockId]
    ) -> None:
        """Blocks of one sequence, tail first, and the same parted into those that were met before
        and the others."""
        fresh, protected, leading = self._fresh, self._protected, 0
        for block_id in reversed(ids):
            if block_id not in protected and block_id not in fresh:
                break
            leading += 1
        self.hits += leading
        _renew(fresh, protected, first)
        _renew(protected, fresh, before)
        _move(len(protected) - int(PROTECTED * self._num_blocks), protected, fresh)
        for queue in (fresh, protected):
            for block_id in _oldest(queue, len(self) - self._num_blocks):
                del queue[block_id]

    def __len__(self) -> int:
        return len(self._fresh) + len(self._protected)


def _renew(queue: Order[None], other: Order[None], ids: Sequence[BlockId]) -> None:
    """They stand at the end of this one, wherever they were."""
    for block_id in ids:
        if block_id in queue:
            queue.move_to_end(block_id)
        else:
            queue[block_id] = None
            if block_id in other:
                del other[block_id]


def _move(count: int, of: Order[T], to: Order[T]) -> None:
    """The oldest of one queue, to the end of another."""
    for block_id in _oldest(of, count):
        to[block_id] = of.pop(block_id)


def _oldest(queue: Order[T], count: int) -> list[BlockId]:
    """None if the count is below zero. All at once: popitem() takes twice as long for each."""
    return list(islice(queue, count)) if count > 0 else []
