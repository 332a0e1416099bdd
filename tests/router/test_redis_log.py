"""Events from a real Redis, written by hand: in order, with gaps, twice, garbled; where the router
looks for what is missing, and that the mirror ends right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from router.index.memory import MemoryIndex
from router.index.redis_log import RedisLog, Repairs
from router.index.redis_reader import RedisReader
from router.pool import Pool
from router.registry_reader import RegistryReader
from tests.redis_server import RedisServer
from tests.router.fleet import LIMITS, FakeWorker, Fleet, until
from workers.core.clock import SystemClock
from workers.core.events import EventKind, KVEvent
from workers.wire.redis_client import connect_redis
from workers.wire.redis_keys import blocks_key, events_key, pack_events, pack_ids, replica_key

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

    def tell(self) -> None:
        """The worker renews its lease: all its events have stood in Redis."""
        lease = self.fake.record.model_copy(update={"event_seq": self.fake.event_seq})
        self.pool.sync([lease])

    async def save(self, seq: int, *numbers: int, at: str = "0-0") -> None:
        """A snapshot in Redis."""
        fields = {"inc": self.fake.incarnation, "seq": seq, "at": at}
        data = pack_ids(block(number) for number in numbers)
        await self.client.hset(
            blocks_key(CLUSTER, self.fake.name), mapping={**fields, "data": data}
        )

    async def publish(self, seq: int, incarnation: str, *numbers: int, place: str = "*") -> None:
        event = KVEvent(EventKind.STORED, tuple(block(number) for number in numbers))
        fields = {"inc": incarnation, "seq": seq, "data": pack_events([event])}
        await self.client.xadd(events_key(CLUSTER, self.fake.name), fields, id=place)

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
async def setting(redis: RedisServer, saved: bool = False) -> AsyncIterator[Setting]:
    """`saved`: Redis has a snapshot of the worker, which is empty."""
    fleet = Fleet()
    fake = await fleet.add("prefill-1", "prefill")
    index = MemoryIndex()
    try:
        async with connect_redis(redis.url) as client:
            log = RedisLog(RedisReader(client, CLUSTER), index, SystemClock())
            async with Pool(LIMITS.worker_silence_s, [log]) as pool:
                it = Setting(client, fake, pool, log, index)
                if saved:
                    await it.save(0)
                it.tell()
                reading = asyncio.create_task(log.run())
                try:
                    yield it
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
        assert it.log.repairs == Repairs(worker=1)
        assert it.index.match([block(1), block(2), block(3)]) == {"prefill-1": 3}


async def test_a_gap_is_mended_by_the_worker_where_redis_has_no_snapshot(
    redis: RedisServer,
) -> None:
    async with setting(redis) as it:
        await it.store(1)
        await it.synced()
        await it.store(2, publish=False)
        await it.store(3)
        await it.mirrored()
        assert it.log.repairs == Repairs(worker=2)


async def test_a_snapshot_in_redis_saves_asking_the_worker(redis: RedisServer) -> None:
    async with setting(redis, saved=True) as it:
        await it.synced()
        assert it.log.repairs == Repairs(saved=1)
        await it.store(1)
        await it.mirrored()
        await it.store(2, publish=False)
        await it.save(2, 1, 2)
        await it.store(3)
        await it.mirrored()
        assert it.log.repairs == Repairs(saved=2)


async def test_a_snapshot_older_than_what_is_known_is_left_alone(redis: RedisServer) -> None:
    async with setting(redis, saved=True) as it:
        await it.store(1)
        await it.mirrored()
        await it.store(2, publish=False)
        await it.store(3)
        await it.mirrored()
        assert it.log.repairs == Repairs(saved=1, worker=1)


async def test_entries_before_the_place_are_found_by_range(redis: RedisServer) -> None:
    """Redis was emptied and its clock runs behind: new entries sort before those that were read."""
    async with setting(redis) as it:
        await it.synced()
        await it.store(1)
        await it.store(2)
        await it.mirrored()
        await it.client.flushall()
        await it.store(3, publish=False)
        await it.publish(3, it.fake.incarnation, 3, place="7-1")
        await it.store(4, publish=False)
        await it.publish(4, it.fake.incarnation, 4, place="7-2")
        it.tell()
        await it.mirrored()
        assert it.log.repairs == Repairs(worker=1, log=1)


async def test_events_lost_at_the_end_are_noticed_by_the_lease(redis: RedisServer) -> None:
    async with setting(redis) as it:
        await it.store(1)
        await it.mirrored()
        await it.store(2, publish=False)
        assert it.log.synced(it.fake.name)  # how should it know
        it.tell()
        await it.mirrored()
        assert it.log.repairs == Repairs(worker=2)


async def test_what_the_snapshot_knew_is_not_applied_again(redis: RedisServer) -> None:
    async with setting(redis) as it:
        await it.store(1)
        await it.synced()
        await it.mirrored()
        await it.publish(1, it.fake.incarnation, 77)  # at least once: the same seq again
        await it.publish(9, "somebody else", 78)
        await it.store(2)
        await it.mirrored()
        assert it.log.repairs.worker == 1


async def test_an_entry_that_cannot_be_read_is_a_gap(redis: RedisServer) -> None:
    async with setting(redis) as it:
        await it.synced()
        await it.client.xadd(events_key(CLUSTER, it.fake.name), {"seq": "x"})
        await it.store(1, publish=False)
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


async def test_a_worker_that_redis_does_not_hear_of_is_asked(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot reach Redis, the router can: its lease runs out, and it lives."""
    monkeypatch.setattr("router.index.redis_log.ALONE_S", 0.2)
    async with setting(redis) as it:
        await it.store(1)
        await it.synced()
        it.pool.sync([])
        await it.store(2, publish=False)
        await it.mirrored()
        it.tell()
        await it.store(3)
        await it.mirrored()
