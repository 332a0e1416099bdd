"""Ways to Redis: with a password and TLS, by Sentinels, to a Redis Cluster whose nodes fail. All of
them real servers, with workers that publish and a router that mirrors."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import redis
from pydantic import ValidationError

from tests.certificates import Authority
from tests.redis_server import RedisServer, free_port, program, redis_server
from tests.router.caching import Proxy, block, caching_workers, router_side
from tests.router.fleet import until
from workers.core.errors import ConfigError
from workers.wire.redis_client import connect_redis
from workers.wire.redis_endpoint import RedisEndpoint

PASSWORD, SERVICE = "pass word/1", "kvasir"
SLOTS = 16384


def server_context(cert: tuple[Path, Path], client_ca: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_ca)
    context.load_cert_chain(*cert)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


async def works(at: RedisEndpoint) -> bool:
    async with connect_redis(at) as client:
        try:
            return bool(await client.ping())
        except redis.RedisError as error:
            assert PASSWORD not in str(error)
            return False


async def test_tls_and_a_password_from_a_file(tmp_path: Path) -> None:
    ours, clients = Authority(tmp_path / "pki"), Authority(tmp_path / "clients")
    cert, key = clients.sign("kvasir")
    password = written(tmp_path / "password", PASSWORD + "\n")
    context = server_context(ours.sign("redis"), clients.ca)
    with redis_server("--requirepass", PASSWORD, password=PASSWORD) as server:
        async with Proxy(server.port, context) as proxy:
            at = RedisEndpoint(
                url=proxy.url, password_file=password, ca=ours.ca, cert=cert, key=key
            )
            assert await works(at)
            assert PASSWORD not in f"{at} {at!r} {at.model_dump_json()}"
            for missing in ("ca", "cert", "password_file"):
                less = {"key": None} if missing == "cert" else {}
                assert not await works(at.model_copy(update={missing: None, **less})), missing
            async with caching_workers(at, 1) as (one,), router_side(at) as side:
                one.compute([block(1), block(2)])
                await side.mirrors(one)
                # Both are replaced while connections are open, then all of these are cut.
                with server.client() as admin:
                    admin.config_set("requirepass", "another")
                    password.write_text("another")
                    clients.sign("kvasir")
                    admin.client_kill_filter(_type="normal", skipme=True)
                one.compute([block(3)])
                await side.mirrors(one)


async def test_a_user_who_may_no_more_than_the_docs_say(tmp_path: Path) -> None:
    may = "resetchannels ~{test}:* &{test}:* +@read +@write +@connection +@pubsub +@scripting"
    password = written(tmp_path / "password", PASSWORD)
    with redis_server() as server:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "kvasir", "on", f">{PASSWORD}", *may.split())
            client.execute_command("ACL", "SETUSER", "default", "off")
        at = RedisEndpoint(url=server.url, username="kvasir", password_file=password)
        assert not await works(RedisEndpoint(url=server.url))
        async with (
            caching_workers(at, 1) as (one,),
            router_side(at) as here,
            router_side(at) as there,
        ):
            one.compute([block(1)])
            await here.mirrors(one)
            await until(lambda: here.log.synced(one.name))
            await until(lambda: there.sharing.id in here.sharing.peers)
            assert (await here.fsck.run(repair=False)).redis_up


def test_what_an_endpoint_may_not_say(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for fields, says in (
        ({"url": "redis://h", "cluster": {"hosts": ["h:1"]}}, "url and cluster are different"),
        ({"url": "redis://h", "username": "me"}, "username needs a password_file"),
        ({"url": "rediss://h", "cert": file}, "cert and key go together"),
        ({"url": "redis://h", "ca": file}, "are for TLS: say `tls: true`"),
        ({"url": "unix:///s", "tls": True}, "a unix:// socket has no TLS"),
        ({"url": "redis://:pw@h", "password_file": file}, "name one"),
        ({"cluster": {"hosts": ["h"]}}, "expected host:port"),
    ):
        with pytest.raises(ValidationError, match=says) as caught:
            RedisEndpoint.model_validate(fields)
        assert "pw" not in str(caught.value)


@contextmanager
def sentinel(master: int, password: str | None = None) -> Iterator[int]:
    """The port of one that watches the master at that port; it is quick to judge."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        lines = [
            f"port {port}", "bind 127.0.0.1", f"dir {folder}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {master} 1",
            f"sentinel down-after-milliseconds {SERVICE} 500",
            f"sentinel failover-timeout {SERVICE} 3000",
        ]  # fmt: skip
        if password is not None:
            lines.append(f'sentinel auth-pass {SERVICE} "{password}"')
        path = written(Path(folder) / "sentinel.conf", "\n".join(lines) + "\n")
        process = subprocess.Popen(
            [program(), str(path), "--sentinel"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield port
        finally:
            process.kill()
            process.wait()


@contextmanager
def replicated(*options: str, password: str | None = None) -> Iterator[list[RedisServer]]:
    """A master, and a replica of it that is in step."""
    with ExitStack() as stack:
        auth = [] if password is None else ["--masterauth", password, "--requirepass", password]
        servers = [
            stack.enter_context(redis_server(*auth, *options, password=password)) for _ in range(2)
        ]
        with servers[1].client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", servers[0].port)
            in_time(lambda: client.info("replication")["master_link_status"] == "up")
        yield servers


def in_time(done, seconds: float = 30.0) -> None:
    for _ in range(int(seconds / 0.05)):
        try:
            if done():
                return
        except redis.RedisError:
            pass
        time.sleep(0.05)
    raise TimeoutError


def sees_a_replica(port: int) -> None:
    """Until it could choose another master."""
    with redis.Redis(port=port) as client:
        in_time(lambda: client.sentinel_master(SERVICE)["num-slaves"] == 1)


async def test_sentinels_name_another_master_and_everything_goes_on(tmp_path: Path) -> None:
    password = written(tmp_path / "password", PASSWORD)
    with (
        replicated(password=PASSWORD) as (master, replica),
        sentinel(master.port, PASSWORD) as watching,
    ):
        await asyncio.to_thread(sees_a_replica, watching)
        nobody = f"127.0.0.1:{free_port()}"
        at = RedisEndpoint(
            sentinel={"hosts": [nobody, f"127.0.0.1:{watching}"], "service": SERVICE},
            password_file=password,
        )
        async with (
            caching_workers(at, 2) as (one, other),
            router_side(at) as here,
            router_side(at) as there,
        ):
            one.compute([block(1), block(2)])
            await here.mirrors(one, other)
            await until(lambda: there.sharing.id in here.sharing.peers)
            master.stop()
            one.compute([block(3)])
            other.compute([block(4)])
            with replica.client() as client:
                await until(lambda: client.info("replication")["role"] == "master", 30)
                await until(lambda: len(client.keys("*:replica:*")) == 2, 30)
            for side in (here, there):
                await side.mirrors(one, other)
                await until(lambda side=side: side.pool.redis_up, 20)
            await until(lambda: there.sharing.id in here.sharing.peers, 20)
            with replica.client() as client:
                assert client.info("replication")["role"] == "master"
                assert sorted(client.keys("*:replica:*")) == [
                    b"{test}:replica:prefill-0", b"{test}:replica:prefill-1",
                ]  # fmt: skip


@pytest.mark.slow
async def test_a_demoted_master_is_left(tmp_path: Path) -> None:
    """It lives on and answers, but takes no writes."""
    with replicated() as (master, replica), sentinel(master.port) as watching:
        await asyncio.to_thread(sees_a_replica, watching)
        at = RedisEndpoint(sentinel={"hosts": [f"127.0.0.1:{watching}"], "service": SERVICE})
        async with connect_redis(at) as client:
            await client.set("k", b"1")
            with redis.Redis(port=watching) as asked:
                asked.execute_command("SENTINEL", "FAILOVER", SERVICE)
                in_time(lambda: asked.sentinel_master(SERVICE)["port"] == replica.port)
            with replica.client() as direct:
                async with asyncio.timeout(20):
                    while direct.get("k") != b"2":
                        with suppress(redis.RedisError):
                            await client.set("k", b"2")
                        await asyncio.sleep(0.05)


async def test_a_service_that_no_sentinel_knows() -> None:
    with redis_server() as master, sentinel(master.port) as watching:
        at = RedisEndpoint(sentinel={"hosts": [f"127.0.0.1:{watching}"], "service": "other"})
        async with connect_redis(at) as client:
            with pytest.raises(redis.ConnectionError, match="No master found for 'other'"):
                await client.ping()
    assert str(at) == f"other of the Sentinels 127.0.0.1:{watching}"


@contextmanager
def redis_cluster(*options: str) -> Iterator[list[RedisServer]]:
    """Three masters with a third of the slots each, and a replica of the one that has ours."""
    with ExitStack() as stack:
        nodes = []
        for _ in range(4):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            node = RedisServer(
                folder, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000", *options,
                port=free_port(),
            )  # fmt: skip
            node.start()
            stack.callback(node.stop)
            nodes.append(node)
        clients = [stack.enter_context(node.client()) for node in nodes]
        third = SLOTS // 3 + 1
        for client, first in zip(clients[:3], range(0, SLOTS, third), strict=True):
            slots = range(first, min(SLOTS, first + third))
            client.execute_command("CLUSTER", "ADDSLOTS", *slots)
        for epoch, client in enumerate(clients, start=1):
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node in nodes[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        in_time(lambda: all(_info(client)["cluster_known_nodes"] == "4" for client in clients))
        owner = clients[0].execute_command("CLUSTER", "KEYSLOT", "{test}:x") // third
        nodes[0], nodes[owner] = nodes[owner], nodes[0]
        clients[0], clients[owner] = clients[owner], clients[0]
        mine = clients[0].execute_command("CLUSTER", "MYID")
        in_time(lambda: clients[3].execute_command("CLUSTER", "REPLICATE", mine))
        in_time(lambda: clients[3].info("replication")["master_link_status"] == "up")
        in_time(lambda: all(_info(client)["cluster_state"] == "ok" for client in clients))
        yield nodes


def _info(client: redis.Redis) -> dict[str, str]:
    text = client.execute_command("CLUSTER", "INFO")
    if isinstance(text, dict):
        return text
    return dict(line.split(":", 1) for line in text.decode().split())


async def test_a_cluster_node_fails_and_its_replica_takes_over() -> None:
    with redis_cluster() as nodes:
        owner, first, second, replica = nodes
        hosts = [f"127.0.0.1:{node.port}" for node in (first, owner, second)]
        at = RedisEndpoint(cluster={"hosts": hosts})
        async with caching_workers(at, 2) as (one, other), router_side(at) as side:
            one.compute([block(1)])
            await side.mirrors(one, other)
            owner.stop()
            one.compute([block(2)])
            other.compute([block(3)])
            with replica.client() as client:
                await until(lambda: client.info("replication")["role"] == "master", 30)
                await until(lambda: len(client.keys("*:replica:*")) == 2, 30)
            await until(lambda: side.pool.redis_up, 20)
            await side.mirrors(one, other)
            await until(lambda: side.log.synced(one.name), 20)
            first.stop()  # the one that was named first, too
            async with connect_redis(at) as late:
                with pytest.raises(redis.RedisError):
                    await late.get("{test}:x")
                async with asyncio.timeout(20):
                    while not await answers(late):
                        await asyncio.sleep(0.05)


async def answers(client: redis.asyncio.Redis) -> bool:
    try:
        await client.exists("{test}:x")
    except redis.RedisError:
        return False
    return True


@pytest.mark.slow
async def test_our_slot_moves_to_another_node_while_workers_publish() -> None:
    with redis_cluster() as nodes:
        owner, other_node = nodes[:2]
        at = RedisEndpoint(cluster={"hosts": [f"127.0.0.1:{owner.port}"]})
        async with caching_workers(at, 1) as (one,), router_side(at) as side:
            one.compute([block(1)])
            await side.mirrors(one)
            moving = asyncio.to_thread(move_slot, owner, other_node, nodes)
            publishing = asyncio.create_task(moving)
            for number in range(2, 40):
                one.compute([block(number)])
                await asyncio.sleep(0.02)
            await publishing
            with other_node.client() as client:
                await until(lambda: client.exists("{test}:replica:prefill-0"), 20)
            await side.mirrors(one)
            await until(lambda: side.log.synced(one.name), 20)
            answer = await side.fsck.run(repair=False)
            assert answer.redis_up and not answer.orphans


def move_slot(source: RedisServer, target: RedisServer, nodes: list[RedisServer]) -> None:
    """As `redis-cli --cluster reshard` does it."""
    with source.client() as old, target.client() as new:
        slot = old.execute_command("CLUSTER", "KEYSLOT", "{test}:x")
        old_id, new_id = (each.execute_command("CLUSTER", "MYID") for each in (old, new))
        new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", old_id)
        old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", new_id)
        while keys := old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1):
            old.execute_command("MIGRATE", "127.0.0.1", target.port, keys[0], 0, 5000, "REPLACE")
            time.sleep(0.1)
        for node in (target, source, *nodes[1:3]):
            with node.client() as client:
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", new_id)


def test_a_broken_url_does_not_tell_the_password() -> None:
    with pytest.raises(ConfigError) as caught:
        connect_redis(RedisEndpoint(url="redis://:sec/ret@h:1"))
    assert "ret" not in caught.value.message
