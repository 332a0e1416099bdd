"""Workers that really cache: a block pool, its events and its registration, behind a fake server.
And a router's side of it: what reads all that into a mirror."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from router.index.fsck import Fsck
from router.index.redis_log import RedisLog
from router.index.redis_reader import RedisReader
from router.pool import Pool
from router.registry_reader import RegistryReader
from router.sharing.blocks import ToldIndex
from router.sharing.channel import Channel
from router.sharing.sharing import Sharing
from tests.router.fleet import BLOCK, LIMITS, FakeWorker, Fleet, until
from workers.core.block_pool import BlockPool
from workers.core.clock import SystemClock
from workers.core.hashing import BlockId
from workers.event_log import EventPublisher
from workers.registry import Registry
from workers.wire import worker_pb2 as worker
from workers.wire.redis_client import connect_redis
from workers.wire.redis_endpoint import RedisEndpoint
from workers.wire.redis_keys import pack_ids

CLUSTER = "test"


def block(number: int) -> BlockId:
    return number.to_bytes(16, "little")


class CachingWorker(FakeWorker):
    """Caches what it is told to, in a pool of `size` blocks, and publishes it as real ones do."""

    def __init__(self, fleet: Fleet, name: str, at: RedisEndpoint | str, size: int = 64) -> None:
        super().__init__(fleet, name, "prefill")
        self.asked = 0  # for its snapshot
        self.hang = False
        self._redis = RedisEndpoint.model_validate(at)
        self._size = size

    async def start(self) -> None:
        """A new life with an empty cache."""
        await super().start()
        self.pool = BlockPool(self._size, BLOCK)
        self.events = EventPublisher(self.pool)
        self.registry = Registry(self._redis, CLUSTER, self.record, self.events)
        self._registered = asyncio.create_task(self.registry.run())

    async def kill(self) -> None:
        """As a crash: nothing is given back."""
        if self.running:
            self._registered.cancel()
            await asyncio.wait({self._registered})
        await super().kill()

    def compute(self, ids: Sequence[BlockId]) -> None:
        """The prompt of a request that ends at once; the oldest blocks give way."""
        ids = ids[: self._size]
        cached = self.pool.match(ids)
        self.pool.acquire(cached)
        new = ids[len(cached) :]
        blocks = self.pool.allocate(len(new))
        self.pool.commit(blocks, new)
        self.pool.release([*cached, *blocks])

    async def Snapshot(
        self, request: worker.SnapshotRequest, context: grpc.aio.ServicerContext
    ) -> worker.SnapshotResponse:
        self.asked += 1
        if self.hang:
            await asyncio.sleep(60)
        seq, ids = self.events.snapshot()
        return worker.SnapshotResponse(
            incarnation=self.incarnation, event_seq=seq, block_ids=pack_ids(ids)
        )


@dataclass
class RouterSide:
    """What one router knows."""

    pool: Pool
    index: ToldIndex
    log: RedisLog
    reader: RedisReader
    fsck: Fsck
    sharing: Sharing

    async def mirrors(self, *workers: CachingWorker) -> None:
        """Until it believes exactly what these cache."""
        await until(lambda: all(self.knows(one) for one in workers), 20.0)
        self.index.check_integrity()

    def knows(self, one: CachingWorker) -> bool:
        """Also that it caches nothing."""
        met = self.log.seq(one.name) >= 0
        return met and self.index.held(one.name) == set(one.pool.cached_ids())


@asynccontextmanager
async def router_side(
    at: RedisEndpoint | str, max_blocks: int = 1 << 16
) -> AsyncIterator[RouterSide]:
    async with connect_redis(at) as client:
        registry, clock = RegistryReader(client, str(at), CLUSTER), SystemClock()
        index = ToldIndex(clock, max_blocks)
        reader = RedisReader(client, CLUSTER)
        log = RedisLog(reader, index, clock)
        sharing = Sharing(Channel(client, CLUSTER), clock, index)
        async with Pool(LIMITS.worker_silence_s, [log, sharing]) as pool:
            tasks = [
                asyncio.create_task(registry.run(pool.sync, pool.redis_lost)),
                asyncio.create_task(log.run()),
                asyncio.create_task(sharing.run()),
            ]
            try:
                fsck = Fsck(pool, index, log, reader, clock)
                yield RouterSide(pool, index, log, reader, fsck, sharing)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)


@asynccontextmanager
async def caching_workers(
    at: RedisEndpoint | str, count: int, size: int = 64
) -> AsyncIterator[list[CachingWorker]]:
    fleet = Fleet()
    try:
        for number in range(count):
            one = CachingWorker(fleet, f"prefill-{number}", at, size)
            fleet.workers[one.name] = one
            await one.start()
        yield [fleet.workers[f"prefill-{number}"] for number in range(count)]
    finally:
        await fleet.close()


class Proxy:
    """A way to Redis that can be slow or cut. `async with Proxy(port) as proxy: proxy.url`. With
    `tls` it is a TLS server."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.delay_s = 0.0
        self._port = port
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'redis' if self._tls is None else 'rediss'}://127.0.0.1:{port}/0"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Nothing passes; nobody is told."""
        self._open.clear()

    def join(self) -> None:
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        onward = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(reader, onward[1]))
                tasks.create_task(self._pump(onward[0], writer))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            onward[1].close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await asyncio.sleep(self.delay_s)
            await self._open.wait()
            writer.write(data)
            await writer.drain()
        writer.close()
