"""A Redis Cluster of two nodes: whichever of them is named, everything meets where our slot is."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import redis

from tests.redis_server import RedisServer, free_port
from tests.router.caching import block, caching_workers, router_side
from tests.router.fleet import until
from workers.wire.redis_client import RedisClient, connect_redis

SLOTS = 16384
KEY = "{test}:k"  # slot 6918, in the first half


@contextmanager
def _node(first: int, end: int) -> Iterator[RedisServer]:
    """Serves the slots from `first` to `end`."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(folder, "--cluster-enabled", "yes", port=free_port())
        server.start()
        try:
            with redis.Redis(port=server.port) as client:
                client.execute_command("CLUSTER", "ADDSLOTS", *range(first, end))
            yield server
        finally:
            server.stop()


@pytest.fixture
def nodes() -> Iterator[list[RedisServer]]:
    with ExitStack() as stack:
        servers = [stack.enter_context(_node(at, at + SLOTS // 2)) for at in (0, SLOTS // 2)]
        with redis.Redis(port=servers[0].port) as client:
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[1].port)
        yield servers


async def test_workers_and_routers_meet_through_any_node(nodes: list[RedisServer]) -> None:
    clients = [redis.Redis(port=node.port) for node in nodes]

    def knows_the_other(client: redis.Redis) -> bool:
        info = client.execute_command("CLUSTER", "INFO")
        return b"cluster_state:ok" in info and b"cluster_slots_ok:%d" % SLOTS in info

    await until(lambda: all(map(knows_the_other, clients)), 30)
    async with (
        caching_workers(nodes[0].url, 2) as (one, other),
        router_side(nodes[0].url) as here,
        router_side(nodes[1].url) as there,
    ):
        one.compute([block(1), block(2)])
        other.compute([block(1)])
        for side in (here, there):
            await side.mirrors(one, other)
            await until(lambda side=side: side.log.synced(one.name))
            answer = await side.fsck.run(repair=False)
            assert answer.redis_up and not answer.orphans
            assert sorted(found.log_blocks for found in answer.replicas) == [1, 2], answer
        await until(lambda: there.sharing.id in here.sharing.peers)
        await until(lambda: here.sharing.id in there.sharing.peers)
    assert sorted(client.dbsize() > 0 for client in clients) == [False, True], "one slot has all"
    for client in clients:
        client.close()


async def test_a_client_whose_node_is_gone_asks_the_one_it_was_given(
    nodes: list[RedisServer],
) -> None:
    owner, given = nodes
    async with connect_redis(given.url) as client:
        await until_moved(client, owner)
        owner.stop()
        with pytest.raises(redis.ConnectionError):
            await client.get(KEY)
        with redis.Redis(port=given.port) as other:  # it takes over
            slot = other.execute_command("CLUSTER", "KEYSLOT", KEY)
            other.execute_command("CLUSTER", "SETSLOT", slot, "NODE", node_id(other))
            other.execute_command("CONFIG", "SET", "cluster-require-full-coverage", "no")
        async with asyncio.timeout(20):
            while True:
                try:
                    await client.set(KEY, b"v")
                    break
                except redis.RedisError:
                    await asyncio.sleep(0.05)
        assert await client.get(KEY) == b"v"


async def test_a_client_whose_given_node_is_gone_comes_back_to_the_one_that_answers(
    nodes: list[RedisServer],
) -> None:
    owner, given = nodes
    async with connect_redis(given.url) as client:
        await until_moved(client, owner)
        given.stop()
        with redis.Redis(port=owner.port) as other:
            other.execute_command("CONFIG", "SET", "cluster-require-full-coverage", "no")
            other.execute_command("CLIENT", "KILL", "TYPE", "normal")
        for _ in range(2):  # the line that was cut, then the node that is gone
            with pytest.raises(redis.ConnectionError):
                await client.set(KEY, b"v")
        await client.set(KEY, b"v")


async def until_moved(client: RedisClient, there: RedisServer) -> None:
    """The node that was given knows by now who has the slot."""
    async with asyncio.timeout(30):
        while client.connection_pool.connection_kwargs["port"] != there.port:
            try:
                await client.set(KEY, b"u")
            except redis.RedisError:
                await asyncio.sleep(0.05)


def node_id(client: redis.Redis) -> bytes:
    found: bytes = client.execute_command("CLUSTER", "MYID")
    return found
