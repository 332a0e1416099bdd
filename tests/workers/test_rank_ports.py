"""KV between replicas of any tensor parallel sizes, rank to rank: each rank behind its port, the
followers' on threads of their own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import product
from zlib import crc32

import pytest
import torch
import uvloop

from tests.lanes import BothEnds, until
from workers.attention.kv_cache import KVCache, KVShape
from workers.config import TransportConfig
from workers.core.errors import KvasirError, TransferError, Unavailable
from workers.core.lanes import Lane
from workers.core.runner import PageStore
from workers.core.span import share
from workers.parallel.follower_port import FollowerPort
from workers.parallel.layout import Layout
from workers.parallel.pages import HeadShares
from workers.parallel.port import PortLine, RemotePort
from workers.parallel.steps import Steps
from workers.transfer.link import RECEIVER, HalfLink, Link, Transport
from workers.transfer.pick import pick_transports
from workers.transfer.port import LocalPort, Port, Ports
from workers.transfer.threads import on_thread

CPU = torch.device("cpu")
HOST = "127.0.0.1"
BLOCKS = 7  # of a shard
SHAPES = {
    "four heads": KVShape(3, 4, 8, 4, torch.float32),
    "two heads": KVShape(2, 2, 8, 4, torch.bfloat16),
    "latent": KVShape(3, 1, 24, 4, torch.bfloat16, sides=1),
}
CONFIG = TransportConfig(backend="gloo", chunk_timeout_s=10.0)


class Counting:
    """A transport whose links write down what they send."""

    def __init__(self, inner: Transport, sent: list[int]) -> None:
        self.name, self.reaches, self._inner, self._sent = (
            *(inner.name, inner.reaches),
            *(inner, sent),
        )

    async def offer(self, side: int, pages: PageStore, num_bytes: int) -> HalfLink:
        half = await self._inner.offer(side, pages, num_bytes)
        join = half.join

        async def joined(blob: bytes) -> Link:
            link = await join(blob)
            send = link.send

            def counted(start: int, num_bytes: int, seq: int) -> Awaitable[None]:
                self._sent.append(num_bytes)
                return send(start, num_bytes, seq)

            link.send = counted  # type: ignore[method-assign]
            return link

        half.join = joined  # type: ignore[method-assign]
        return half


class Replica:
    """`full`: of each shard its pages as a single rank would hold them."""

    def __init__(self, layout: Layout, shape: KVShape) -> None:
        self.layout, self.shape = layout, shape
        self.shares = HeadShares(layout, shape.kv_heads)
        self.caches = [
            KVCache(replace(shape, kv_heads=self.shares.of(rank).size), BLOCKS, CPU)
            for rank in range(layout.world)
        ]
        self.steps = [Steps() for _ in self.caches]
        self.lines: list[PortLine] = []
        self.lost: list[KvasirError] = []
        self.sent: list[int] = []  # bytes of each message of its ranks
        self.ports: Ports

    def fill(self) -> list[KVCache]:
        """Random pages of each shard, shared out to its ranks."""
        full = []
        for shard in range(self.layout.shards):
            cache = KVCache(self.shape, BLOCKS, CPU)
            cache.pages.copy_(torch.randn(cache.pages.shape, generator=torch.manual_seed(shard)))
            for rank in self.shares.holders(shard):
                self.caches[rank].pages.copy_(cache.pages[..., self.shares.of(rank).part, :])
            full.append(cache)
        return full

    def transports(self, config: TransportConfig) -> list[Transport]:
        return [Counting(each, self.sent) for each in pick_transports(config, HOST)]

    def engine_ids(self, shard: int, blocks: list[int]) -> list[int]:
        return [shard * BLOCKS + block for block in blocks]

    async def open(self, config: TransportConfig) -> Ports:
        transports = self.transports(config)
        ports: list[Port] = [LocalPort(self.caches[0], self.shares.of(0), transports, on_thread)]
        for rank in range(1, self.layout.world):
            near, far = socket.socketpair()
            first = rank // self.layout.tensor * BLOCKS
            follower = FollowerPort(
                self.caches[rank],
                self.shares.of(rank),
                first,
                self.steps[rank],
                lambda line: self.transports(TransportConfig.model_validate(line)),
            )
            threading.Thread(target=_serve, args=(follower, far)).start()
            line = await PortLine.over(near, rank)
            line.open(config.model_dump())
            self.lines.append(line)
            ports.append(RemotePort(line, rank, self.steps[0], self.lost.append))
        by_shard = [
            tuple(ports[rank] for rank in self.shares.holders(shard))
            for shard in range(self.layout.shards)
        ]
        block_bytes = self.shape.block_bytes
        self.ports = Ports(tuple(by_shard), self.shape.kv_heads, block_bytes)
        return self.ports


@asynccontextmanager
async def replicas(
    shape: KVShape, *layouts: Layout, config: TransportConfig = CONFIG
) -> AsyncIterator[list[Replica]]:
    """Open; at the end no thread of theirs is left."""
    before = set(threading.enumerate())
    there = [Replica(layout, shape) for layout in layouts]
    for replica in there:
        await replica.open(config)
    yield there
    for replica in there:
        for line in replica.lines:
            line.end("over")
        assert not replica.lost

    def left() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t not in before and not t.daemon]

    await until(lambda: not left())


def _serve(follower: FollowerPort, line: socket.socket) -> None:
    asyncio.run(follower.serve(line))


SIZES = (1, 2, 4)
LAYOUTS = [(Layout(one, 1), Layout(other, 1)) for one, other in product(SIZES, SIZES)]
SHARDED = [(Layout(2, 4), Layout(1, 1)), (Layout(2, 1), Layout(2, 4)), (Layout(1, 2), Layout(4, 1))]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    "layouts",
    [*LAYOUTS, *SHARDED],
    ids=lambda both: "-".join(f"tp{at.tensor}ep{at.experts}" for at in both),
)
async def test_whole_blocks_are_the_same_on_both_sides(
    layouts: tuple[Layout, Layout], name: str
) -> None:
    shape, here, there = SHAPES[name], [5, 0, 3], [1, 2, 6]
    async with replicas(shape, *layouts) as (sender, receiver):
        full = sender.fill()
        shards = sender.layout.shards - 1, receiver.layout.shards - 1
        pair = BothEnds(sender.ports, receiver.ports, shards)
        await pair.connect()
        wrong = await pair.carry(
            sender.engine_ids(shards[0], here), receiver.engine_ids(shards[1], there)
        )
        assert not wrong
        expected = KVCache(shape, BLOCKS, CPU)
        expected.pages[there] = full[shards[0]].pages[here]
        for rank, cache in enumerate(receiver.caches):
            own = expected.pages[..., receiver.shares.of(rank).part, :]
            if rank not in receiver.shares.holders(shards[1]):
                own = torch.zeros_like(own)
            assert torch.equal(cache.pages, own), f"rank {rank}"
        pair.close()


async def test_a_range_is_one_message_a_lane_and_few_words_to_each_rank() -> None:
    """However many blocks, layers and heads it has."""
    shape = SHAPES["four heads"]
    async with replicas(shape, Layout(4, 1), Layout(2, 1)) as (sender, receiver):
        sender.fill()
        pair = BothEnds(sender.ports, receiver.ports)
        await pair.connect()
        lines = (*sender.lines, *receiver.lines)
        said = [line.asked for line in lines]
        chunks = 3
        for _ in range(chunks):
            await pair.carry(range(BLOCKS), range(BLOCKS))
        assert sender.sent == [BLOCKS * shape.block_bytes // 4] * len(pair.lanes) * chunks
        assert not receiver.sent
        # A gather and a send, or, of both lanes that end there, a receive and a scatter.
        words = [line.asked - before for line, before in zip(lines, said, strict=True)]
        assert words == [2 * chunks] * 3 + [4 * chunks]
        pair.close()


async def test_what_each_rank_holds_for_a_pair_is_known() -> None:
    shape = SHAPES["four heads"]
    async with replicas(shape, Layout(4, 1), Layout(2, 1)) as (sender, receiver):
        pair = BothEnds(sender.ports, receiver.ports, blocks_per_slot=5)
        await pair.connect()
        for report in (pair.sender.report(), pair.receiver.report()):
            assert (report.lanes, report.staging_bytes) == (4, 5 * shape.block_bytes)
            assert report.threads >= 4 and report.fds >= 4
        ends = [pair.ends(lane) for lane in pair.lanes]
        pair.close()
        assert not any(port.cost(key).staging_bytes for port, key, _, _ in ends)


async def test_a_rank_that_is_gone_fails_its_lanes_and_what_waits_for_it() -> None:
    async with replicas(SHAPES["four heads"], Layout(1, 1), Layout(2, 1)) as (sender, receiver):
        pair = BothEnds(sender.ports, receiver.ports)
        await pair.connect()
        _, _, port, key = pair.ends(pair.lanes[1])
        arrival = await port.recv(key, 0, 2, 1)
        assert pair.receiver.failed is None and pair.sender.failed is None
        receiver.lines[0].connection_lost(None)
        assert port.failed(key) == "rank 1 is gone"
        refused: list[Awaitable[object]] = [
            arrival,
            port.scatter(key, 0, [1], []),
            port.offer("another", "gloo", RECEIVER, pair.lanes[1], 1, 1),
        ]
        for each in refused:
            with pytest.raises(TransferError, match="rank 1"):
                await each
        assert pair.receiver.failed == "rank 1 is gone"
        # Its end of the lane went with it, and so does the other one.
        await until(lambda: pair.sender.failed is not None)


async def test_a_follower_says_that_its_idle_link_is_broken() -> None:
    async with replicas(SHAPES["four heads"], Layout(1, 1), Layout(2, 1)) as (sender, receiver):
        pair = BothEnds(sender.ports, receiver.ports)
        await pair.connect()
        (_, _, first, first_key), (source, key, second, second_key) = map(pair.ends, pair.lanes)
        source.close(key)
        await until(lambda: second.failed(second_key) is not None)
        assert first.failed(first_key) is None, "the others go on"
        pair.close()
        assert second.failed(second_key) == "closed"


async def test_a_follower_copies_no_page_before_its_own_part_of_the_steps_is_over() -> None:
    async with replicas(SHAPES["two heads"], Layout(2, 1), Layout(1, 1)) as (sender, receiver):
        sender.fill()
        pair = BothEnds(sender.ports, receiver.ports)
        await pair.connect()
        port, key, _, _ = pair.ends(pair.lanes[1])
        sender.steps[0].over()  # of which rank 1 still computes its last layers
        copy = asyncio.ensure_future(port.gather(key, 0, [3], True))
        await asyncio.sleep(0.1)
        assert not copy.done()
        sender.caches[1].pages[3] = 2.0
        sender.steps[1].over()
        data = sender.caches[1].pages[3].flatten().view(torch.uint8).numpy().tobytes()
        assert await copy == [crc32(data)]
        pair.close()


async def test_blocks_with_a_wrong_checksum_are_named_and_not_copied() -> None:
    async with replicas(SHAPES["four heads"], Layout(1, 1), Layout(2, 1)) as (sender, receiver):
        full = sender.fill()[0]
        pair = BothEnds(sender.ports, receiver.ports)
        await pair.connect()
        there = [3, 4, 5]
        assert await pair.carry([0, 1, 2], there, spoil=1) == [1]
        for rank, cache in enumerate(receiver.caches):
            sent = full.pages[[0, 1, 2]][..., receiver.shares.of(rank).part, :].clone()
            if rank == 0:
                sent[1] = 0
            assert torch.equal(cache.pages[there], sent), f"rank {rank}"
        pair.close()


async def test_errors_of_a_follower_come_back() -> None:
    async with replicas(SHAPES["four heads"], Layout(2, 1)) as (replica,):
        (_, port), lane = replica.ports.of(0), Lane(0, 1, share(4, 1, 2))
        with pytest.raises(TransferError, match="no nccl transport here, only gloo"):
            await port.offer("k", "nccl", RECEIVER, lane, 1, 1)
        assert port.failed("k") is None
        port.close("k")
        with pytest.raises(TransferError, match="rank 1: closed"):
            await port.gather("k", 0, [0], False)


async def test_a_copy_that_nobody_answers_for_loses_the_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.parallel.port.COPY_S", 0.05)
    async with replicas(SHAPES["two heads"], Layout(2, 1), Layout(1, 1)) as (sender, receiver):
        pair = BothEnds(sender.ports, receiver.ports)
        await pair.connect()
        port, key, _, _ = pair.ends(pair.lanes[1])
        sender.steps[0].over()
        with pytest.raises(TransferError, match="rank 1 has not copied pages"):
            await port.gather(key, 0, [3], False)
        (loss,) = sender.lost
        assert isinstance(loss, Unavailable)
        sender.lost.clear()
        sender.steps[1].over()
        pair.close()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_line_works_in_the_loop_of_tests_and_in_that_of_workers(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.settimeout(10.0)
            line = await PortLine.over(ours, rank=1)
            line.open({"host": HOST})
            assert theirs.recv(1000) == b'{"host": "127.0.0.1"}\n'
            asked = line.ask("echo", 5)
            assert b'"echo"' in theirs.recv(1000)
            theirs.sendall(b'{"id": 1, "is": 5}\n')
            assert await asked.over == 5
            line.end("over")

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
