"""Which unreferenced block gives way first. The pool tells a policy what becomes idle and what is
wanted again; the policy only ranks. Every operation takes constant time for each block.

Sequences give their blocks back tail first, so what was built on a prefix goes before it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Literal, Protocol

from workers.core.hashing import BlockId

EvictionName = Literal["adaptive", "lru"]


class EvictionPolicy(Protocol):
    def idle(self, blocks: Sequence[int], ids: Sequence[BlockId]) -> None:
        """The last reference to these cached blocks is gone: blocks of one sequence, tail first."""

    def wanted(self, block: int) -> None:
        """An idle block is referenced again, or its content is void."""

    def victim(self) -> int:
        """Choose and forget one idle block; there is one."""

    def expect(self, ids: Sequence[BlockId]) -> None:
        """A prompt of these blocks waits for its turn."""

    def settle(self, ids: Sequence[BlockId]) -> None:
        """It waits no more: what it uses was wanted by now."""

    def __len__(self) -> int: ...

    def __contains__(self, block: int) -> bool: ...


def make_eviction(name: EvictionName, num_blocks: int) -> EvictionPolicy:
    """For a pool of so many blocks."""
    return Adaptive(num_blocks) if name == "adaptive" else LRU()


class LRU:
    """Least recently used."""

    def __init__(self) -> None:
        self._order: OrderedDict[int, None] = OrderedDict()

    def idle(self, blocks: Sequence[int], ids: Sequence[BlockId]) -> None:
        self._order.update(dict.fromkeys(blocks))

    def wanted(self, block: int) -> None:
        del self._order[block]

    def victim(self) -> int:
        return self._order.popitem(last=False)[0]

    def expect(self, ids: Sequence[BlockId]) -> None: ...

    def settle(self, ids: Sequence[BlockId]) -> None: ...

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, block: int) -> bool:
        return block in self._order


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
    is seen by following both rules beside the pool, by ids: where LRU has more hits the older of
    both queues' heads goes. After 2Q, segmented LRU, and the duels of adaptive insertion (DIP).
    """

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._fresh: OrderedDict[int, int] = OrderedDict()  # turn in which it became idle
        self._protected: OrderedDict[int, int] = OrderedDict()
        self._spared: OrderedDict[int, int] = OrderedDict()  # would have gone, but is expected
        self._id_of: dict[int, BlockId] = {}
        self._block_of: dict[BlockId, int] = {}
        self._expected: Counter[BlockId] = Counter()
        self._turn = 0
        self._met: OrderedDict[BlockId, None] = OrderedDict()
        self._protecting = Shadow(num_blocks, PROTECTED)
        self._lru = Shadow(num_blocks, 0.0)
        self._given = 0

    def idle(self, blocks: Sequence[int], ids: Sequence[BlockId]) -> None:
        known = self._met
        before = [block_id in known for block_id in ids]
        if 2 * sum(before) >= len(ids):
            before = [True] * len(ids)
        for block_id in ids:
            known[block_id] = None
            known.move_to_end(block_id)
        while len(known) > (1 + REMEMBERED) * self._num_blocks:
            known.popitem(last=False)
        self._duel(ids, before)
        self._turn += 1
        for block, met in zip(blocks, before, strict=True):
            (self._protected if met else self._fresh)[block] = self._turn
        self._id_of.update(zip(blocks, ids, strict=True))
        self._block_of.update(zip(ids, blocks, strict=True))
        while self._worth_it and len(self._protected) > PROTECTED * self._num_blocks:
            block, turn = self._protected.popitem(last=False)
            self._fresh[block] = turn

    @property
    def _worth_it(self) -> bool:
        return self._protecting.hits >= (1 - BEHIND) * self._lru.hits

    def _duel(self, ids: Sequence[BlockId], before: Sequence[bool]) -> None:
        self._protecting.idle(ids, before)
        self._lru.idle(ids, before)
        self._given += len(ids)
        if self._given > HALVED * self._num_blocks:
            self._given = 0
            for shadow in (self._protecting, self._lru):
                shadow.hits /= 2

    def wanted(self, block: int) -> None:
        if block in self._protected:
            del self._protected[block]
        elif block in self._fresh:
            del self._fresh[block]
        else:
            del self._spared[block]
        self._forget(block)

    def victim(self) -> int:
        while self._fresh or self._protected:
            queue = self._next()
            block, turn = queue.popitem(last=False)
            if self._id_of[block] not in self._expected:
                break
            self._spared[block] = turn
        else:
            block, _ = self._spared.popitem(last=False)
        self._forget(block)
        return block

    def _next(self) -> OrderedDict[int, int]:
        if not (self._fresh and self._protected) or self._worth_it:
            return self._fresh or self._protected
        oldest = (turns[next(iter(turns))] for turns in (self._fresh, self._protected))
        return self._fresh if next(oldest) <= next(oldest) else self._protected

    def _forget(self, block: int) -> None:
        del self._block_of[self._id_of.pop(block)]

    def expect(self, ids: Sequence[BlockId]) -> None:
        self._expected.update(ids)

    def settle(self, ids: Sequence[BlockId]) -> None:
        expected = self._expected
        gone: list[BlockId] = []
        for block_id in ids:
            left = expected[block_id] - 1
            if left:
                expected[block_id] = left
            else:
                del expected[block_id]
                gone.append(block_id)
        if not self._spared:
            return
        idle = (self._block_of.get(block_id) for block_id in gone)
        over = [block for block in idle if block is not None and block in self._spared]
        for block in over:  # from the root, so that the tail is first again
            self._fresh[block] = self._spared.pop(block)
            self._fresh.move_to_end(block, last=False)

    def __len__(self) -> int:
        return len(self._id_of)

    def __contains__(self, block: int) -> bool:
        return block in self._id_of


class Shadow:
    """What a pool of that size would have kept of the same blocks, by their ids, if it protected
    those met before with a part of it; `hits` counts leading blocks of prompts, as nothing else is
    a prefix."""

    def __init__(self, num_blocks: int, protected: float) -> None:
        self.hits = 0.0
        self._num_blocks = num_blocks
        self._most = int(protected * num_blocks)
        self._fresh: OrderedDict[BlockId, None] = OrderedDict()
        self._protected: OrderedDict[BlockId, None] = OrderedDict()

    def idle(self, ids: Sequence[BlockId], before: Sequence[bool]) -> None:
        """Blocks of one sequence, tail first, and which of them were met before."""
        fresh, protected = self._fresh, self._protected
        for block_id in reversed(ids):
            if block_id not in fresh and block_id not in protected:
                break
            self.hits += 1
        protects = self._most > 0
        for block_id, met in zip(ids, before, strict=True):
            fresh.pop(block_id, None)
            protected.pop(block_id, None)
            (protected if met and protects else fresh)[block_id] = None
        while len(protected) > self._most:
            block_id, _ = protected.popitem(last=False)
            fresh[block_id] = None
        while len(fresh) + len(protected) > self._num_blocks:
            (fresh or protected).popitem(last=False)
