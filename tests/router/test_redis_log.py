"""Events from a real Redis: in order, with gaps, flushed, restarted; the mirror ends right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from router.index.memory import MemoryIndex
from router.index.redis_log import RedisLog
from router.pool import Pool
from router.registry_reader import RegistryReader
from tests.redis_server import RedisServer
from tests.router.fleet import LIMITS, FakeWorker, Fleet, until
from workers.core.events import EventKind, KVEvent
from workers.wire.redis_client import connect_redis
from workers.wire.redis_keys import events_key, pack_events, replica_key

CLUSTER = "test"


def block(number: int) -> bytes:
    return number.to_bytes(16, "little")


class Setting:
    """One worker that publishes, one pool and mirror that follow."""

    def __init__(self, client, fake: FakeWorker, pool: Pool, log: RedisLog, index) -> None:
        self.client = client
        self.fake = fake
        self.pool = pool
        self.log = log
        self.index = index

    async def store(self, *numbers: int, publish: bool = True) -> None:
        """The worker caches blocks; unless published, the event is lost."""
        self.fake.blocks += [block(number) for number in numbers]
        self.fake.event_seq += 1
        if publish:
            await self.publish(self.fake.event_seq, self.fake.incarnation, *numbers)

    async def publish(self, seq: int, incarnation: str, *numbers: int) -> None:
        event = KVEvent(EventKind.STORED, tuple(block(number) for number in numbers))
        fields = {"inc": incarnation, "seq": seq, "data": pack_events([event])}
        await self.client.xadd(events_key(CLUSTER, self.fake.name), fields)

    async def synced(self) -> None:
        await until(lambda: self.log.synced(self.fake.name))

    async def mirrored(self) -> None:
        """Until the mirror holds exactly what the worker caches."""
        name, held = self.fake.name, self.fake.blocks
        await until(
            lambda: (
                self.index.count(name) == len(held)
                and all(self.index.match([one]) == {name: 1} for one in held)
            )
        )
        self.index.check_integrity()


@asynccontextmanager
async def setting(redis: RedisServer) -> AsyncIterator[Setting]:
    fleet = Fleet()
    fake = await fleet.add("prefill-1", "prefill")
    index = MemoryIndex()
    try:
        async with connect_redis(redis.url) as client:
            log = RedisLog(client, CLUSTER, index)
            async with Pool(LIMITS.worker_silence_s, [log]) as pool:
                pool.sync(fleet.records())
                reading = asyncio.create_task(log.run())
                try:
                    yield Setting(client, fake, pool, log, index)
                finally:
                    reading.cancel()
    finally:
        await fleet.close()


async def test_events_follow_the_snapshot(redis: RedisServer) -> None:
    async with setting(redis) as it:
        await it.store(1, 2, publish=False)  # before anybody listened
        await it.synced()
        await it.store(3)
        await it.store(4, 5)
        await it.mirrored()
        assert it.log.snapshots == 1
        assert it.index.match([block(1), block(2), block(3)]) == {"prefill-1": 3}


async def test_a_gap_is_mended_by_a_snapshot(redis: RedisServer) -> None:
    async with setting(redis) as it:
        await it.store(1)
        await it.synced()
        await it.store(2, publish=False)
        await it.store(3)
        await it.mirrored()
        assert it.log.snapshots == 2


async def test_what_the_snapshot_knew_is_not_applied_again(redis: RedisServer) -> None:
    async with setting(redis) as it:
        await it.store(1)
        await it.synced()
        await it.mirrored()
        await it.publish(1, it.fake.incarnation, 77)  # at least once: the same seq again
        await it.publish(9, "somebody else", 78)
        await it.store(2)
        await it.mirrored()
        assert it.log.snapshots == 1


async def test_an_entry_that_cannot_be_read_is_a_gap(redis: RedisServer) -> None:
    async with setting(redis) as it:
        await it.synced()
        await it.client.xadd(events_key(CLUSTER, it.fake.name), {"seq": "x"})
        await it.store(1, publish=False)
        await it.mirrored()


async def test_flush_and_restart_of_redis(redis: RedisServer) -> None:
    async with setting(redis) as it:
        await it.store(1)
        await it.mirrored()
        await it.client.flushall()
        await it.store(2)
        await it.mirrored()
        await asyncio.to_thread(redis.stop)
        await it.store(3, publish=False)
        await until(lambda: not it.log.synced(it.fake.name))
        assert it.index.match([block(1)]) == {"prefill-1": 1}  # the mirror is kept meanwhile
        await asyncio.to_thread(redis.start)
        await it.mirrored()
        await it.store(4)
        await it.mirrored()


async def test_a_restarted_worker_starts_empty(redis: RedisServer) -> None:
    async with setting(redis) as it:
        await it.store(1)
        await it.mirrored()
        await it.fake.kill()
        await until(lambda: len(it.index) == 0)
        it.fake.blocks.clear()
        it.fake.event_seq = 0
        await it.fake.start()
        await it.synced()
        await it.store(8)
        await it.mirrored()


async def test_registry_reads_what_workers_wrote(redis: RedisServer) -> None:
    fleet = Fleet()
    fake = await fleet.add("decode-1", "decode")
    try:
        async with connect_redis(redis.url) as client:
            reader = RegistryReader(client, redis.url, CLUSTER)
            assert await reader.read_first() == []
            await client.set(replica_key(CLUSTER, "decode-1"), fake.record.model_dump_json())
            await client.set(replica_key(CLUSTER, "broken"), "{}")
            await client.set(replica_key("other", "x"), fake.record.model_dump_json())
            assert await reader.read() == [fake.record]
            async with Pool(LIMITS.worker_silence_s) as pool:
                reading = asyncio.create_task(reader.run(pool.sync, pool.redis_lost))
                await until(lambda: pool.count_up("decode") == 1)
                await asyncio.to_thread(redis.stop)
                await until(lambda: not pool.redis_up)
                assert pool.count_up("decode") == 1  # nobody is dropped for a lease
                await asyncio.to_thread(redis.start)
                await until(lambda: pool.redis_up)
                assert pool.count_up("decode") == 1
                await fake.kill()  # unregistered and dead: now it is forgotten
                await until(lambda: len(pool) == 0)
                reading.cancel()
    finally:
        await fleet.close()
