"""The one way we connect to Redis: fails fast, and can be cancelled. Who is registered there."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import redis.asyncio
from pydantic import ValidationError
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, MovedError, TimeoutError

from workers.core.errors import ConfigError
from workers.wire.redis_keys import ReplicaRecord, replica_key, without_password

log = logging.getLogger(__name__)


class RedisClient(redis.asyncio.Redis):
    """One server, or the node of a Redis Cluster that has our slot: all our keys are in one, so
    where a node says that they moved, the whole client moves. Where one does not answer, the next
    command goes to the node that was given at first or, if it was that one, to the one named last.

    The library sends inside asyncio.wait_for, which on Python 3.11 drops a cancellation that comes
    as the send completes (CPython #86296); who cancelled us would then wait for ever."""

    _given: tuple[str, int] | None = None  # where it was before it moved
    _named: tuple[str, int] | None = None  # where it was last told to go

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        task = asyncio.current_task()
        asked = task.cancelling() if task else 0
        pool = self.connection_pool
        try:
            reply = await super().execute_command(*args, **options)
        except MovedError as moved:
            self._named = moved.host or pool.connection_kwargs["host"], moved.port
            await self._move(*self._named)
            reply = await super().execute_command(*args, **options)
        except (ConnectionError, TimeoutError):
            if self._given and self._named and self.connection_pool is pool:
                here = pool.connection_kwargs["host"], pool.connection_kwargs["port"]
                await self._move(*(self._named if here == self._given else self._given))
            raise
        if task and task.cancelling() > asked:
            raise asyncio.CancelledError
        return reply

    async def keys_like(self, pattern: str) -> list[bytes]:
        """All keys that match. SCAN names no key, so the pattern is asked for as one before: that
        leads to the node that has them."""
        await self.exists(pattern)
        return [key async for key in self.scan_iter(match=pattern, count=1000)]

    async def _move(self, host: str, port: int) -> None:
        old = self.connection_pool
        here = old.connection_kwargs
        if self._given is None:
            self._given = here["host"], here["port"]
        there = here | {"host": host, "port": port}
        self.connection_pool = redis.asyncio.ConnectionPool(old.connection_class, **there)
        await old.disconnect(inuse_connections=False)


def connect_redis(url: str, timeout_s: float = 2.0) -> RedisClient:
    """A client with a deadline on every answer that never retries by itself: its callers' loops do
    that. Replies are bytes. Raises ConfigError for what is no Redis URL."""
    try:
        return RedisClient.from_url(  # type: ignore[return-value]
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # one shape of replies, whatever the server's age
        )
    except ValueError:  # its text may hold a part of the password
        raise ConfigError(
            f"{without_password(url)!r} is not a Redis URL; in a password, what is not a letter or "
            "a digit must be written as %XX"
        ) from None


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
