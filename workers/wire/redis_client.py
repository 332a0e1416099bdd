"""The one way we connect to Redis: fails fast, and can be cancelled. Who is registered there."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import redis.asyncio
from pydantic import ValidationError
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
)
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import ConnectionError, MovedError, TimeoutError

from workers.core.errors import ConfigError
from workers.wire.redis_endpoint import Node, RedisEndpoint
from workers.wire.redis_keys import ReplicaRecord, replica_key, without_password
from workers.wire.tls import client_context

log = logging.getLogger(__name__)


class RedisClient(redis.asyncio.Redis):
    """One server, the master that Sentinels name, or the node of a Redis Cluster that has our slot.

    All our keys are in one slot, so where a node says that they moved, the whole client moves.
    Where one does not answer, the next command goes to the next node that we know of: those that
    were given, and the one named last.

    The library sends inside asyncio.wait_for, which on Python 3.11 drops a cancellation that comes
    as the send completes (CPython #86296); who cancelled us would then wait for ever."""

    given: tuple[Node, ...] = ()  # of a Redis Cluster; else where it was before it moved
    _named: Node | None = None  # where it was last told to go

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        task = asyncio.current_task()
        asked = task.cancelling() if task else 0
        pool = self.connection_pool
        try:
            reply = await super().execute_command(*args, **options)
        except MovedError as moved:
            self._named = moved.host or pool.connection_kwargs["host"], moved.port
            await self._move(self._named)
            reply = await super().execute_command(*args, **options)
        except (ConnectionError, TimeoutError):
            if self.connection_pool is pool:
                await self._move_on()
            raise
        if task and task.cancelling() > asked:
            raise asyncio.CancelledError
        return reply

    async def keys_like(self, pattern: str) -> list[bytes]:
        """All keys that match. SCAN names no key, so the pattern is asked for as one before: that
        leads to the node that has them."""
        await self.exists(pattern)
        return [key async for key in self.scan_iter(match=pattern, count=1000)]

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        if isinstance(self.connection_pool, SentinelConnectionPool):
            for sentinel in self.connection_pool.sentinel_manager.sentinels:
                await sentinel.aclose()

    async def _move_on(self) -> None:
        nodes = list(dict.fromkeys([*self.given, *([self._named] if self._named else [])]))
        if len(nodes) > 1:
            here = _node(self.connection_pool)
            after = nodes.index(here) + 1 if here in nodes else 0
            await self._move(nodes[after % len(nodes)])

    async def _move(self, node: Node) -> None:
        old = self.connection_pool
        self.given = self.given or (_node(old),)
        there = old.connection_kwargs | {"host": node[0], "port": node[1]}
        self.connection_pool = redis.asyncio.ConnectionPool(old.connection_class, **there)
        await old.disconnect(inuse_connections=False)


def connect_redis(at: RedisEndpoint | str, timeout_s: float = 2.0) -> RedisClient:
    """A client with a deadline on every answer that never retries by itself: its callers' loops do
    that. Replies are bytes. Raises ConfigError for what is no Redis URL."""
    if isinstance(at, str):
        at = RedisEndpoint(url=at)
    options = _options(timeout_s) | _login(at.username, at.password_file) | _tls(at)
    if at.sentinel is not None:
        return _of_sentinels(at, options, timeout_s)
    if at.cluster is not None:
        nodes = at.cluster.nodes
        host, port = nodes[0]
        pool = redis.asyncio.ConnectionPool(**options, host=host, port=port)
        client = _client(pool)
        client.given = tuple(nodes)
        return client
    assert at.url is not None, "a server is named"
    try:
        where: dict[str, Any] = dict(parse_url(at.url))
    except ValueError:  # its text may hold a part of the password
        raise ConfigError(
            f"{without_password(at.url)!r} is not a Redis URL; in a password, what is not a letter "
            "or a digit must be written as %XX"
        ) from None
    where |= options
    return _client(redis.asyncio.ConnectionPool(**where))


def _of_sentinels(at: RedisEndpoint, options: dict[str, Any], timeout_s: float) -> RedisClient:
    assert at.sentinel is not None
    asked = _options(timeout_s) | _login(at.sentinel.username, at.sentinel.password_file)
    manager = Sentinel([], sentinel_kwargs={})
    # Made by us: the library takes no class of connections for them.
    manager.sentinels = [
        redis.asyncio.Redis.from_pool(
            redis.asyncio.ConnectionPool(**asked | _tls(at), host=host, port=port)
        )
        for host, port in at.sentinel.nodes
    ]
    if at.uses_tls:
        options |= {"connection_class": _ManagedTlsConnection}
    pool = SentinelConnectionPool(at.sentinel.service, manager, **options)
    return _client(pool)


def _client(pool: redis.asyncio.ConnectionPool) -> RedisClient:
    """It closes its pool with itself."""
    client = RedisClient.from_pool(pool)
    assert isinstance(client, RedisClient)
    return client


def _options(timeout_s: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # one shape of replies, whatever the server's age
    }


def _login(username: str | None, password_file: Path | None) -> dict[str, Any]:
    if password_file is None:
        return {}
    return {"credential_provider": _PasswordFile(username, password_file)}


def _tls(at: RedisEndpoint) -> dict[str, Any]:
    if not at.uses_tls:
        return {}
    return {
        "connection_class": _TlsConnection,
        "ssl_check_hostname": True,
        "ssl_ca_certs": at.ca,
        "ssl_certfile": at.cert,
        "ssl_keyfile": at.key,
    }


class _PasswordFile(CredentialProvider):
    """Read with each connection."""

    def __init__(self, username: str | None, path: Path) -> None:
        self._username = username
        self._path = path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        password = self._path.read_text(encoding="utf-8").rstrip("\r\n")
        return (password,) if self._username is None else (self._username, password)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


class _TlsConnection(SSLConnection):
    async def _connect(self) -> None:
        """With what its files say now; the library would read them once."""
        files = self.ssl_context
        files.context = client_context(files.ca_certs, files.certfile, files.keyfile)
        await super()._connect()


class _ManagedTlsConnection(SentinelManagedConnection, _TlsConnection):
    pass


def _node(pool: redis.asyncio.ConnectionPool) -> Node:
    return pool.connection_kwargs["host"], pool.connection_kwargs["port"]


async def read_replicas(client: RedisClient, cluster: str) -> list[ReplicaRecord]:
    """All replicas of a cluster whose lease runs. Raises RedisError or OSError."""
    keys = await client.keys_like(replica_key(cluster, "*"))
    values: list[Any] = await client.mget(keys) if keys else []
    return [record for value in values if (record := _parse(value)) is not None]


def _parse(value: bytes | None) -> ReplicaRecord | None:
    if value is None:  # its lease ran out between SCAN and MGET
        return None
    try:
        return ReplicaRecord.model_validate_json(value)
    except ValidationError as error:
        log.warning("a replica record in Redis cannot be read: %s", error)
        return None
