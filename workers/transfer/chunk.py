"""A block range on its way through a pair, and whose turn it is."""

from __future__ import annotations

import asyncio
from enum import StrEnum

from workers.core.errors import TransferError


class ChunkState(StrEnum):
    """See TRANSITIONS for what moves a chunk."""

    OFFERED = "offered"
    READY = "ready"  # the receiver posts its receive, or will when told to go
    POSTED = "posted"
    ARRIVED = "arrived"  # in the receiver's staging
    TAKEN = "taken"  # in its pages: the slot is free on both sides
    VOID = "void"  # the receiver leaves, and neither side has posted anything for it
    LOST = "lost"  # nobody knows what the other side has posted: the generation is retired


C = ChunkState
TRANSITIONS: frozenset[tuple[ChunkState, ChunkState]] = frozenset(
    {
        (C.OFFERED, C.READY),  # Ready is said
        (C.OFFERED, C.POSTED),  # receiver, where receives are posted before Ready
        (C.OFFERED, C.VOID),  # the receiver left before it said Ready
        (C.READY, C.POSTED),  # its turn has come, and Go is said where it has to be
        (C.READY, C.VOID),  # the receiver left, and Go had not been said
        (C.POSTED, C.ARRIVED),
        (C.ARRIVED, C.TAKEN),  # Taken or Received is said; one who leaves takes by dropping
        (C.OFFERED, C.LOST),  # a deadline, or a stream or link that broke; asked for again
        (C.READY, C.LOST),
        (C.POSTED, C.LOST),
        (C.ARRIVED, C.LOST),
    }
)
UNDER_WAY = frozenset({C.OFFERED, C.READY, C.POSTED, C.ARRIVED})


class Chunk:
    """`first` and `count`: its blocks within the ticket. `seq`: its place in the pair's order."""

    def __init__(self, seq: int, slot: int, first: int, count: int) -> None:
        self.seq = seq
        self.slot = slot
        self.first = first
        self.count = count
        self.state = C.OFFERED

    @property
    def blocks(self) -> range:
        return range(self.first, self.first + self.count)

    @property
    def under_way(self) -> bool:
        return self.state in UNDER_WAY

    def move(self, to: ChunkState) -> None:
        assert (self.state, to) in TRANSITIONS, f"chunk {self.seq}: {self.state} -> {to}"
        self.state = to

    def __repr__(self) -> str:
        return f"Chunk({self.seq} {self.state} slot={self.slot} {self.blocks})"


class Turns:
    """Both sides of a pair post strictly in the order of its seqs, from 1 on; a void one is passed
    over."""

    def __init__(self) -> None:
        self._next = 1
        self._over: set[int] = set()
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def wait(self, seq: int) -> None:
        """Until all before `seq` are posted or void. Raises TransferError once nothing will be
        posted any more, or for a seq that had its turn."""
        if seq < self._next or seq in self._over or seq in self._waiting:
            raise TransferError(f"chunk {seq} comes a second time")
        if seq == self._next:
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[seq] = turn
        try:
            await turn
        finally:
            self._waiting.pop(seq, None)

    def over(self, seq: int) -> None:
        """`seq` is posted, or void."""
        if seq >= self._next:
            self._over.add(seq)
        while self._next in self._over:
            self._over.remove(self._next)
            self._next += 1
        turn = self._waiting.get(self._next)
        if turn is not None and not turn.done():
            turn.set_result(None)

    def end(self, why: str) -> None:
        """The pair is retired."""
        for turn in self._waiting.values():
            if not turn.done():
                turn.set_exception(TransferError(why))
