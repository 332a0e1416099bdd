"""Mirror, log and worker tables end the same, whatever happens to Redis, workers and routers."""

from __future__ import annotations

import asyncio
import random

import pytest
from redis.exceptions import RedisError

from router.index import redis_log
from router.index.fsck import differs
from router.index.redis_reader import RedisReader
from tests.redis_server import RedisServer
from tests.router.caching import (
    CLUSTER,
    CachingWorker,
    Proxy,
    block,
    caching_workers,
    router_side,
)
from tests.router.fleet import until
from workers import registry
from workers.core.events import EventKind, KVEvent
from workers.wire.redis_client import connect_redis
from workers.wire.redis_keys import blocks_key, events_key, pack_events, replica_key

SIZE = 24


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots and lease checks often enough to matter within a test."""
    monkeypatch.setattr(registry, "RENEW_S", 0.2)
    monkeypatch.setattr("workers.event_log.SNAPSHOT_BLOCKS", 40)
    monkeypatch.setattr(redis_log, "ALONE_S", 0.2)


def work(rng: random.Random, workers: list[CachingWorker]) -> None:
    """A few prompts with shared beginnings, some of which push others out."""
    for one in workers:
        for _ in range(rng.randrange(4)):
            start = rng.randrange(6) * 10
            one.compute([block(start + depth) for depth in range(rng.randrange(1, 9))])


async def saved(reader: RedisReader, one: CachingWorker) -> bool:
    found = await reader.saved(one.name)
    return found is not None and found.incarnation == one.incarnation


async def test_a_new_router_is_warm_from_redis_alone(redis: RedisServer) -> None:
    rng = random.Random(1)
    async with caching_workers(redis.url, 3, SIZE) as workers:
        async with router_side(redis.url) as first:
            for _ in range(20):
                work(rng, workers)
                await asyncio.sleep(0.06)  # an entry of its own for each
            await first.mirrors(*workers)
        for one in workers:
            one.asked, one.hang = 0, True
        async with router_side(redis.url) as second:
            await second.mirrors(*workers)
            assert second.log.repairs.saved == 3
        assert not any(one.asked for one in workers)


@pytest.mark.parametrize("blocks", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
async def test_many_blocks_from_snapshots_and_logs(redis: RedisServer, blocks: int) -> None:
    each = blocks // 4
    async with caching_workers(redis.url, 4, each) as workers:
        for number, one in enumerate(workers):
            ids = [block(number << 32 | low) for low in range(each)]
            one.compute(ids[: each * 3 // 4])
        async with asyncio.timeout(60), router_side(redis.url, 2 * blocks) as side:
            while not all([await saved(side.reader, one) for one in workers]):
                await asyncio.sleep(0.05)
            await until(lambda: len(side.index) == 4 * (each * 3 // 4), 60)
        for number, one in enumerate(workers):
            for low in range(each * 3 // 4, each, 256):
                top = min(low + 256, each)
                one.compute([block(number << 32 | at) for at in range(low, top)])
                one.events.collect()  # an entry of its own
            one.asked, one.hang = 0, True
        async with router_side(redis.url, 2 * blocks) as side:
            await until(lambda: len(side.index) == 4 * each, 60)
            await side.mirrors(*workers)
            assert side.log.repairs.worker == 0


async def test_two_routers_follow_through_kills_and_flushes(redis: RedisServer) -> None:
    rng = random.Random(2)
    async with (
        caching_workers(redis.url, 3, SIZE) as workers,
        router_side(redis.url) as one,
        router_side(redis.url) as other,
    ):

        async def agree() -> None:
            await one.mirrors(*workers)
            await other.mirrors(*workers)

        work(rng, workers)
        await agree()
        await asyncio.to_thread(redis.stop)
        work(rng, workers)
        await agree()  # by asking the workers
        await asyncio.to_thread(redis.start)
        work(rng, workers)
        await until(lambda: all(one.log.synced(w.name) for w in workers), 20)
        await agree()
        async with connect_redis(redis.url) as client:
            await client.flushall()
            work(rng, workers)
            await agree()
            await client.delete(*(events_key(CLUSTER, w.name) for w in workers))
        work(rng, workers)
        await agree()
        await workers[0].kill()
        await until(lambda: one.index.count(workers[0].name) == 0)
        await workers[0].start()
        work(rng, workers)
        await agree()
        for side in (one, other):
            answer = await side.fsck.run(repair=False)
            assert answer.redis_up and len(answer.replicas) == 3
            assert not any(map(differs, answer.replicas)), answer


async def test_a_slow_and_a_cut_way_to_redis(redis: RedisServer) -> None:
    rng = random.Random(3)
    async with (
        caching_workers(redis.url, 2, SIZE) as workers,
        Proxy(redis.port) as proxy,
        router_side(proxy.url) as side,
    ):
        work(rng, workers)
        await side.mirrors(*workers)
        proxy.delay_s = 0.3
        work(rng, workers)
        await side.mirrors(*workers)
        proxy.delay_s = 0.0
        proxy.cut()
        work(rng, workers)
        await side.mirrors(*workers)  # the workers are asked after the deadline of an answer
        assert not side.log.synced(workers[0].name)
        proxy.join()
        work(rng, workers)
        await until(lambda: all(side.log.synced(w.name) for w in workers), 20)
        await side.mirrors(*workers)


async def test_a_worker_that_hangs_holds_up_nobody_else(redis: RedisServer) -> None:
    async with caching_workers(redis.url, 2) as (stuck, well), router_side(redis.url) as side:
        stuck.compute([block(1)])
        await side.mirrors(stuck, well)
        stuck.hang = True
        side.log.distrust(stuck.name)
        await until(lambda: stuck.asked > 0)
        well.compute([block(7), block(8)])
        await side.mirrors(well)
        assert side.log.seq(stuck.name) < 0, "still waiting"


async def test_the_log_stays_short_and_a_snapshot_covers_the_rest(redis: RedisServer) -> None:
    async with caching_workers(redis.url, 1, SIZE) as (one,), router_side(redis.url) as side:
        for start in range(0, 2000, 20):
            one.compute([block(start + depth) for depth in range(20)])
            one.events.collect()  # an entry for each prompt
        await side.mirrors(one)
        reader = side.reader
        async with asyncio.timeout(10), connect_redis(redis.url) as client:
            one.compute([block(9000 + depth) for depth in range(SIZE)])
            await asyncio.sleep(0.2)
            one.compute([block(9100 + depth) for depth in range(SIZE)])
            while await client.xlen(events_key(CLUSTER, one.name)) > 100:
                await asyncio.sleep(0.05)
            found = await reader.saved(one.name)
            assert found is not None and found.seq > 90
        await side.mirrors(one)


async def test_events_of_a_dead_life_are_not_believed(redis: RedisServer) -> None:
    async with caching_workers(redis.url, 1) as (one,), router_side(redis.url) as side:
        one.compute([block(1), block(2)])
        await side.mirrors(one)
        await one.kill()
        await until(lambda: len(side.index) == 0)
        await one.start()
        one.compute([block(5)])
        await side.mirrors(one)
        assert side.index.match([block(1)]) == {}


async def test_fsck_finds_and_mends_what_differs(redis: RedisServer) -> None:
    async with caching_workers(redis.url, 2) as (good, bad), router_side(redis.url) as side:
        good.compute([block(1)])
        bad.compute([block(1), block(2), block(3)])
        await side.mirrors(good, bad)
        async with connect_redis(redis.url) as client:
            while not await saved(side.reader, bad):
                await asyncio.sleep(0.05)
            # a snapshot that tells of a block nobody has and forgets three; a mirror as wrong
            await client.hset(blocks_key(CLUSTER, bad.name), mapping={
                "seq": bad.events.last_seq, "at": await side.reader.last_place(bad.name),
                "data": block(77), "inc": bad.incarnation,
            })  # fmt: skip
            await client.xadd(events_key(CLUSTER, "gone"), {"inc": "x", "seq": 1, "data": b""})
            side.index.apply(bad.name, [KVEvent(EventKind.REMOVED, (block(2),))])
            side.index.apply(bad.name, [KVEvent(EventKind.STORED, (block(8), block(9)))])
            seen = await found_at_once(side, bad.name)
            assert (seen.table_blocks, seen.log_missing, seen.log_extra) == (3, 3, 1)
            assert (seen.mirror_missing, seen.mirror_extra, seen.mended) == (1, 2, False)
            answer = await side.fsck.run(repair=True)
            assert answer.orphans == ["gone"]
            assert {one.replica: one.mended for one in answer.replicas} == {
                good.name: False, bad.name: True,
            }  # fmt: skip
            assert side.knows(bad) and side.knows(good)
            answer = await side.fsck.run(repair=False)
            assert not answer.orphans and not any(map(differs, answer.replicas)), answer


async def found_at_once(side, name: str):
    """The first check: the worker may have seen by then that Redis has not what it wrote."""
    answer = await side.fsck.run(repair=False)
    assert answer.orphans == ["gone"]
    return next(one for one in answer.replicas if one.replica == name)


async def test_fsck_says_what_it_could_not_compare(redis: RedisServer) -> None:
    async with caching_workers(redis.url, 1) as (one,), router_side(redis.url) as side:
        one.compute([block(1)])
        await side.mirrors(one)
        await asyncio.to_thread(redis.stop)
        answer = await side.fsck.run(repair=False)
        assert not answer.redis_up
        assert any("redis" in fault for fault in answer.replicas[0].faults), answer
        await one.kill()
        await until(lambda: not any(replica.alive for replica in side.pool))
        answer = await side.fsck.run(repair=False)
        assert [one.mirror_extra for one in answer.replicas] == [0]  # gone at once


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
async def test_mirror_log_and_tables_agree_after_any_sequence(redis: RedisServer, seed) -> None:
    """Random work and random harm; then quiet, and fsck finds nothing."""
    rng = random.Random(seed)
    async with (
        caching_workers(redis.url, 3, SIZE) as workers,
        Proxy(redis.port) as proxy,
        router_side(redis.url) as near,
        router_side(proxy.url) as far,
        connect_redis(redis.url) as client,
    ):

        async def lose_an_entry() -> None:
            one = rng.choice(workers)
            last = await client.xrevrange(events_key(CLUSTER, one.name), count=1)
            if last:
                await client.xdel(events_key(CLUSTER, one.name), last[0][0])

        async def garble() -> None:
            key = events_key(CLUSTER, rng.choice(workers).name)
            await client.xadd(key, {"seq": "x"})

        async def repeat() -> None:
            one = rng.choice(workers)
            event = KVEvent(EventKind.STORED, (block(99),))
            fields = {"inc": one.incarnation, "seq": 1, "data": pack_events([event])}
            if one.events.acknowledged:
                await client.xadd(events_key(CLUSTER, one.name), fields)

        async def restart() -> None:
            one = rng.choice(workers)
            await one.kill()
            await one.start()

        async def empty() -> None:
            await client.flushall()

        async def bounce() -> None:
            await asyncio.to_thread(redis.stop)
            work(rng, workers)
            await asyncio.sleep(0.1)
            await asyncio.to_thread(redis.start)

        async def cut() -> None:
            proxy.cut()
            work(rng, workers)
            await asyncio.sleep(0.1)
            proxy.join()

        harms = [lose_an_entry, garble, repeat, restart, empty, bounce, cut]
        rng.shuffle(harms)
        for harm in [*harms, *rng.choices(harms, k=3)]:
            for _ in range(rng.randrange(1, 4)):
                work(rng, workers)
                await asyncio.sleep(rng.choice([0, 0.06]))
            try:
                await harm()
            except (RedisError, OSError):
                assert harm is not bounce
            work(rng, workers)
        for side in (near, far):
            await until(lambda side=side: all(side.log.synced(w.name) for w in workers), 30)
            await side.mirrors(*workers)
            answer = await side.fsck.run(repair=True)  # a log that was garbled has to be cleared
            assert all(one.mended or not differs(one) for one in answer.replicas), answer
            answer = await side.fsck.run(repair=False)
            assert not any(map(differs, answer.replicas)), answer


async def test_leaving_workers_leave_nothing_in_redis(redis: RedisServer) -> None:
    async with caching_workers(redis.url, 1) as (one,), connect_redis(redis.url) as client:
        one.compute([block(1)])
        keys = {key(CLUSTER, one.name).encode() for key in (replica_key, events_key, blocks_key)}
        async with asyncio.timeout(10):
            while set(await client.keys("*")) != keys:
                await asyncio.sleep(0.05)
        await one.kill()
        await one.registry.leave()
        assert await client.keys("*") == []
