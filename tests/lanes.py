"""Both ends of one pair, for tests of what stands behind it: no protocol, one chunk at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence

from workers.core.lanes import Lane, lanes
from workers.transfer.link import RECEIVER, SENDER
from workers.transfer.pair import Pair
from workers.transfer.port import Port, Ports

WAIT_S = 20.0
_numbers = itertools.count()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not true():
            await asyncio.sleep(0.01)


class BothEnds:
    """Between one shard of each. `lanes` in their order."""

    def __init__(
        self,
        sender: Ports,
        receiver: Ports,
        shards: tuple[int, int] = (0, 0),
        *,
        backend: str = "gloo",
        blocks_per_slot: int = 8,
    ) -> None:
        self.sources, self.targets = sender.of(shards[0]), receiver.of(shards[1])
        self.lanes = lanes(sender.kv_heads, len(self.sources), len(self.targets))
        self.name = f"pair {next(_numbers)}"
        # A block that goes to several ranks counts as often.
        times = sum(lane.heads.size for lane in self.lanes) / sender.kv_heads
        self.sender, self.receiver = (
            Pair(
                *("peer", side, backend, 1, self.lanes, ports, sender.block_bytes),
                name=f"{self.name} {side}",
                shards=shards,
                slot_bytes=int(blocks_per_slot * sender.block_bytes * times),
                slots=1,
                deadline_s=WAIT_S,
            )
            for side, ports in ((SENDER, self.sources), (RECEIVER, self.targets))
        )
        self.chunks = 0

    def ends(self, lane: Lane) -> tuple[Port, str, Port, str]:
        """The sender's port and key, and the receiver's."""
        i = self.lanes.index(lane)
        return (
            *(self.sources[lane.source], f"{self.name} {SENDER} {i}"),
            *(self.targets[lane.target], f"{self.name} {RECEIVER} {i}"),
        )

    async def connect(self) -> None:
        async with asyncio.timeout(WAIT_S):
            there = await self.receiver.offer()
            here = await self.sender.offer()
            await asyncio.gather(
                *(
                    end.join(blobs, end.slot_bytes, 1)
                    for end, blobs in ((self.sender, there), (self.receiver, here))
                )
            )
            assert self.sender.posts_first and self.receiver.posts_first

    async def carry(
        self, here: Sequence[int], there: Sequence[int], spoil: int | None = None
    ) -> list[int]:
        """The indices of blocks whose checksum was wrong: `spoil`, where the first lane is told
        another one than its block has."""
        self.chunks += 1
        async with asyncio.timeout(WAIT_S):
            crcs = await self.sender.gather(0, here, True)
            if spoil is not None:
                crcs[spoil] ^= 1
            arrival = await self.receiver.recv(0, len(there), self.chunks)
            await self.sender.send(0, len(here), self.chunks)
            await arrival
            return await self.receiver.scatter(0, there, crcs)

    def close(self) -> None:
        self.sender.retire("over")
        self.receiver.retire("over")
