"""The pages of a replica as one: whole blocks outside, a share of the heads on each rank.

Outside, a block has the layout of a single rank's, [layers, sides, block_size, kv_heads, head_dim]
with all heads, so replicas of different tensor parallel sizes exchange KV as it is. A gather asks
one rank for each head; a scatter gives each rank the heads that it holds. Copies run beside steps:
they have a channel, a group and, on followers, a thread of their own. This is for blocks that go
inside gRPC; those of a pair go from rank to rank, see port.py.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from workers.attention.kv_cache import KVCache
from workers.core.span import Span, share
from workers.parallel.channel import Kind, Message, Sender
from workers.parallel.group import Group
from workers.parallel.layout import Layout
from workers.parallel.steps import Steps

LEADER = 0


class HeadShares:
    """Which of the model's `kv_heads` each rank of a shard holds, and who is asked for them."""

    def __init__(self, layout: Layout, kv_heads: int) -> None:
        size = layout.tensor
        self.spans = [share(kv_heads, rank % size, size) for rank in range(layout.world)]
        self.total = kv_heads
        self.shards = layout.shards
        self._size = size

    def of(self, rank: int) -> Span:
        return self.spans[rank]

    def holders(self, shard: int) -> range:
        """The ranks that hold pages of this shard."""
        return range(shard * self._size, (shard + 1) * self._size)

    def sources(self, shard: int) -> list[int]:
        """The first of its ranks with each span of heads."""
        first = {self.spans[rank]: rank for rank in reversed(self.holders(shard))}
        return sorted(first.values())


class RankedPages:
    """The leader's PageStore. Any thread may copy; one copy runs at a time."""

    def __init__(
        self, own: KVCache, shares: HeadShares, channel: Sender, group: Group, steps: Steps
    ) -> None:
        """`group`: of all ranks, for nothing but page copies, which come after the `steps` that are
        over here: a rank of another shard may still be in their last layers."""
        self._own = own
        self._shape = replace(own.shape, kv_heads=shares.total)
        self._shares = shares
        self._channel = channel
        self._group = group
        self._steps = steps
        self._beside = own.beside
        self._one = threading.Lock()
        self.num_blocks = own.num_blocks * shares.shards
        self.block_bytes = self._shape.block_bytes
        self.new_staging = own.new_staging
        self.to_bytes = own.to_bytes
        self.from_bytes = own.from_bytes

    def gather(self, blocks: Sequence[int], staging: Tensor, heads: slice | None = None) -> None:
        """Raises Unavailable where a rank does not answer."""
        assert heads is None, "who wants some heads asks the rank that has them: its Port"
        shard, own_blocks = self._located(blocks)
        sources = self._shares.sources(shard)
        followers = [rank for rank in sources if rank != LEADER]
        with self._one, self._beside():
            if LEADER in sources:
                self._part(staging, blocks, LEADER).copy_(
                    self._typed(_gather(self._own, own_blocks), blocks)
                )
            if not followers:
                return
            self._channel.send(Kind.GATHER, array("q", [self._steps.done, shard, *own_blocks]))
            size = len(blocks) * self._own.block_bytes  # all hold equally many heads
            came = self._receive(staging, dict.fromkeys(followers, size))
            for rank, part in zip(followers, came.split(size), strict=True):
                self._part(staging, blocks, rank).copy_(self._typed(part, blocks))

    def scatter(self, staging: Tensor, blocks: Sequence[int], heads: slice | None = None) -> None:
        """Raises Unavailable where a rank does not answer."""
        assert heads is None, "as for gather"
        shard, own_blocks = self._located(blocks)
        holders = self._shares.holders(shard)
        with self._one, self._beside():
            parts = {
                rank: self._part(staging, blocks, rank).flatten().view(torch.uint8)
                for rank in holders
            }
            mine = parts.pop(LEADER, None)
            self._channel.send(Kind.SCATTER, array("q", [self._steps.done, shard, *own_blocks]))
            sent = [len(parts[rank]) if rank in parts else 0 for rank in range(self._group.size)]
            data = torch.cat([*parts.values()]) if parts else staging.new_empty(0)
            self._group.all_to_all(data, sent, [0] * len(sent))
            if mine is not None:
                self._own.scatter(mine, own_blocks)
            # A follower's copy is over when it says so: the next step may read it.
            self._receive(staging, dict.fromkeys(parts, 1))

    def _located(self, blocks: Sequence[int]) -> tuple[int, list[int]]:
        """The shard that has them, and what they are called there."""
        shard = blocks[0] // self._own.num_blocks
        first = shard * self._own.num_blocks
        return shard, [block - first for block in blocks]

    def _receive(self, staging: Tensor, sizes: dict[int, int]) -> Tensor:
        """So many bytes from each of these ranks."""
        received = [sizes.get(rank, 0) for rank in range(self._group.size)]
        return self._group.all_to_all(staging.new_empty(0), [0] * len(received), received)

    def _part(self, staging: Tensor, blocks: Sequence[int], rank: int) -> Tensor:
        """The heads of `rank` in whole blocks."""
        used = len(blocks) * self.block_bytes
        assert staging.numel() >= used, f"staging of {staging.numel()} bytes for {used}"
        return self._typed(staging[:used], blocks)[..., self._shares.of(rank).part, :]

    def _typed(self, data: Tensor, blocks: Sequence[int]) -> Tensor:
        """Bytes -> [blocks, layers, sides, block_size, heads, head_dim]."""
        shape = self._shape
        sizes = (len(blocks), shape.layers, shape.sides, shape.block_size, -1, shape.head_dim)
        return data.view(shape.dtype).view(sizes)


class FollowerPages:
    """A follower's share of page copies."""

    def __init__(
        self, own: KVCache, shares: HeadShares, rank: int, group: Group, steps: Steps
    ) -> None:
        self._own = own
        self._steps = steps
        self._shares = shares
        self._rank = rank
        self._group = group
        self._none = [0] * group.size
        self._beside = own.beside

    def answer(self, message: Message) -> None:
        """Do what a GATHER or SCATTER says. Raises Unavailable where the leader is gone."""
        words = array("q")
        words.frombytes(message.payload)
        after, shard, *blocks = words
        self._steps.wait(after)
        with self._beside():
            if message.kind is Kind.GATHER:
                asked = self._rank in self._shares.sources(shard)
                self._send(_gather(self._own, blocks) if asked else self._own.new_staging(0))
            else:
                told = self._rank in self._shares.holders(shard)
                size = len(blocks) * self._own.block_bytes if told else 0
                part = self._receive(size)
                if told:
                    self._own.scatter(part, blocks)
                self._send(self._own.new_staging(1 if told else 0))

    def _receive(self, size: int) -> Tensor:
        mine = self._to_leader(size)
        return self._group.all_to_all(self._own.new_staging(0), self._none, mine)

    def _send(self, data: Tensor) -> None:
        self._group.all_to_all(data, self._to_leader(len(data)), self._none)

    def _to_leader(self, count: int) -> list[int]:
        return [count, *self._none[1:]]


def _gather(cache: KVCache, blocks: Sequence[int]) -> Tensor:
    """Bytes of one rank's blocks."""
    staging = cache.new_staging(len(blocks) * cache.block_bytes)
    cache.gather(blocks, staging)
    return staging
