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
BETTER = 1.3  # times more often that blocks met before must be used again to be worth protecting
PRIOR = 0.3  # of blocks used again, before anything is known
HALVED = 16  # pools of blocks given, after which what was counted counts half
REMEMBERED = 4  # ids of blocks that are gone, as a multiple of the pool (about 150 bytes each)
BEHIND = 0.01  # of LRU's hits that may be lost before it is followed


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
    longer than the fresh ones' stay does not make a conversation a stranger. So both kinds' chances
    of use are counted whatever was evicted; only where those met before are used again more often
    are they protected, and else the older of both queues' heads goes, as in LRU. So it does while
    LRU, which is followed by ids beside it, would have had more hits. After 2Q and segmented LRU.
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
        self._met: OrderedDict[BlockId, bool] = OrderedDict()  # did it count as met before
        self._worth_it = False
        self._given = [num_blocks / 2] * 2  # blocks met first, and met before
        self._used = [given * PRIOR for given in self._given]  # of these, used again
        self._rival = Rival(num_blocks)

    def idle(self, blocks: Sequence[int], ids: Sequence[BlockId]) -> None:
        before = [self._met.pop(block_id, None) for block_id in ids]
        met = len(before) - before.count(None)
        continued = 2 * met >= len(ids)
        self._count(before, len(ids) if continued else met)
        self._rival.idle(ids)
        self._met.update(
            (block_id, continued or was is not None)
            for block_id, was in zip(ids, before, strict=True)
        )
        while len(self._met) > (1 + REMEMBERED) * self._num_blocks:
            self._met.popitem(last=False)
        self._turn += 1
        for block, was in zip(blocks, before, strict=True):
            protected = continued or was is not None
            (self._protected if protected else self._fresh)[block] = self._turn
        self._id_of.update(zip(blocks, ids, strict=True))
        self._block_of.update(zip(ids, blocks, strict=True))
        while self._worth_it and len(self._protected) > PROTECTED * self._num_blocks:
            block, turn = self._protected.popitem(last=False)
            self._fresh[block] = turn

    def _count(self, before: Sequence[bool | None], protected: int) -> None:
        """Whether protection is founded: those met before come back more often than others."""
        self._given[False] += len(before) - protected
        self._given[True] += protected
        self._used[False] += before.count(False)
        self._used[True] += before.count(True)
        fresh, again = (used / given for used, given in zip(self._used, self._given, strict=True))
        self._worth_it = again >= BETTER * fresh and not self._rival.ahead
        if sum(self._given) > HALVED * self._num_blocks:
            self._given = [given / 2 for given in self._given]
            self._used = [used / 2 for used in self._used]

    def wanted(self, block: int) -> None:
        if block in self._protected:
            del self._protected[block]
        elif block in self._fresh:
            del self._fresh[block]
        else:
            del self._spared[block]
        self._forget(block)
        self._rival.hit()

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


class Rival:
    """What LRU would have kept of the same blocks, by their ids, and who had more hits of late."""

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._kept: OrderedDict[BlockId, None] = OrderedDict()
        self._given = 0
        self._hits = 0.0
        self._ours = 0.0

    def idle(self, ids: Sequence[BlockId]) -> None:
        kept = self._kept
        again = [block_id for block_id in ids if block_id in kept]
        self._hits += len(again)
        for block_id in again:
            del kept[block_id]
        kept.update(dict.fromkeys(ids))
        while len(kept) > self._num_blocks:
            kept.popitem(last=False)
        self._given += len(ids)
        if self._given > HALVED * self._num_blocks:
            self._given = 0
            self._hits, self._ours = self._hits / 2, self._ours / 2

    def hit(self) -> None:
        self._ours += 1

    @property
    def ahead(self) -> bool:
        return self._ours < (1 - BEHIND) * self._hits
