"""The worker's side of Redis: lease, events, and Redis that comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import redis.asyncio as redis

from tests.redis_server import RedisServer, redis_server
from workers.core.block_pool import BlockPool
from workers.core.events import EventKind
from workers.core.hashing import block_ids
from workers.event_log import EventPublisher
from workers.registry import Registry
from workers.wire.redis_endpoint import RedisEndpoint
from workers.wire.redis_keys import RENEW_S, ReplicaRecord, events_key, replica_key, unpack_events

IDS = block_ids(range(64), b"", 4)
RECORD = ReplicaRecord(
    id="decode-0",
    incarnation="abc",
    address="127.0.0.1:1",
    pool="decode",
    role="decode",
    model="m",
    kv_abi="abi",
    block_size=4,
    context_length=64,
    kv_tokens=64,
)


@asynccontextmanager
async def registered(server: RedisServer) -> AsyncIterator[tuple[BlockPool, redis.Redis]]:
    pool = BlockPool(16, 4)
    registry = Registry(RedisEndpoint(url=server.url), "k", RECORD, EventPublisher(pool))
    client = redis.Redis.from_url(server.url)
    running = asyncio.create_task(registry.run())
    try:
        yield pool, client
    finally:
        running.cancel()
        await asyncio.wait({running})
        await registry.leave()
        await client.aclose()


async def until(client: redis.Redis, check: Callable[[object], bool]) -> None:
    """`check` sees the lease, as soon as Redis answers."""
    async with asyncio.timeout(20):
        while True:
            try:
                if check(await client.get(replica_key("k", "decode-0"))):
                    return
            except redis.RedisError:
                pass
            await asyncio.sleep(0.05)


async def events_of(client: redis.Redis, count: int) -> list[tuple[int, bytes, list]]:
    async with asyncio.timeout(20):
        while True:
            entries = await client.xrange(events_key("k", "decode-0"))
            if len(entries) >= count:
                break
            await asyncio.sleep(0.05)
    return [
        (int(fields[b"seq"]), fields[b"inc"], unpack_events(fields[b"data"]))
        for _, fields in entries
    ]


async def test_lease_and_events_and_leaving() -> None:
    with redis_server() as server:
        async with registered(server) as (pool, client):
            await until(client, lambda raw: raw is not None)
            raw = await client.get(replica_key("k", "decode-0"))
            assert ReplicaRecord.model_validate_json(raw) == RECORD
            assert 0 < await client.pttl(replica_key("k", "decode-0")) <= 10_000
            first, second = pool.allocate(2)
            pool.commit([first], [IDS[0]])
            pool.commit([second], [IDS[1]])
            (entry,) = await events_of(client, 1)
            assert entry[:2] == (1, b"abc")
            assert [(e.kind, e.blocks) for e in entry[2]] == [(EventKind.STORED, (IDS[0], IDS[1]))]
            pool.release([first, second])
            pool.allocate(16)
            entries = await events_of(client, 2)
            assert entries[1][0] == 2
            assert {b for e in entries[1][2] for b in e.blocks} == {IDS[0], IDS[1]}
        async with redis.Redis.from_url(server.url) as client:
            assert await client.get(replica_key("k", "decode-0")) is None, "the lease is given back"


async def test_after_a_flush_and_after_a_restart_it_registers_again() -> None:
    with redis_server() as server:
        async with registered(server) as (pool, client):
            await until(client, lambda raw: raw is not None)
            await client.flushall()
            await until(client, lambda raw: raw is not None)
            server.stop()
            block = pool.allocate(1)[0]
            pool.commit([block], [IDS[0]])  # while nobody listens
            await asyncio.sleep(0.5)
            server.start()
            await until(client, lambda raw: raw is not None)
            entries = await events_of(client, 1)
            assert entries[-1][2][0].blocks == (IDS[0],), "what happened meanwhile is not lost"


async def test_without_redis_it_only_counts() -> None:
    pool = BlockPool(4, 4)
    events = EventPublisher(pool)
    registry = Registry(None, "k", RECORD, events)
    running = asyncio.create_task(registry.run())
    block = pool.allocate(1)[0]
    pool.commit([block], [IDS[0]])
    async with asyncio.timeout(5):
        while events.last_seq == 0:
            await asyncio.sleep(0.01)
    running.cancel()
    await registry.leave()


async def test_the_others_of_the_cluster_are_known_while_redis_says_so() -> None:
    assert await Registry(None, "k", RECORD, EventPublisher(BlockPool(4, 4))).peers() is None
    with redis_server() as server:
        async with registered(server) as (_, client):
            await until(client, lambda raw: raw is not None)
            registry = Registry(
                RedisEndpoint(url=server.url), "k", RECORD, EventPublisher(BlockPool(4, 4))
            )
            assert await registry.peers() == [], "itself is none of them"
            other = RECORD.model_copy(update={"id": "prefill-0", "role": "prefill"})
            await client.set(replica_key("k", other.id), other.model_dump_json())
            await client.set(replica_key("another", other.id), other.model_dump_json())
            await client.set(replica_key("k", "broken"), "what is this")
            assert await registry.peers() == [other]
            server.stop()
            assert await registry.peers() is None
            server.start()
            await registry.leave()


async def test_a_new_role_is_registered_without_waiting_for_the_next_renewal() -> None:
    with redis_server() as server:
        registry = Registry(
            RedisEndpoint(url=server.url), "k", RECORD, EventPublisher(BlockPool(16, 4))
        )
        client = redis.Redis.from_url(server.url)
        running = asyncio.create_task(registry.run())
        await until(client, lambda lease: lease is not None)
        registry.set_role("prefill")
        async with asyncio.timeout(RENEW_S / 2):
            await until(client, lambda lease: b'"role":"prefill"' in lease)  # type: ignore[operator]
        running.cancel()
        await asyncio.wait({running})
        await registry.leave()
        assert await client.get(replica_key("k", "decode-0")) is None
        await client.aclose()
