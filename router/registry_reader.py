"""Who is registered: the replica records in Redis, read once a second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError

from workers.core.errors import ConfigError, Unavailable
from workers.wire.redis_client import RedisClient, read_replicas
from workers.wire.redis_keys import ReplicaRecord, plan_key, scale_key

log = logging.getLogger(__name__)

READ_EVERY_S = 1.0


class RegistryReader:
    """Reads until cancelled. `on_records` gets all records; `on_lost` hears that Redis is away.
    `where`: that is, as people may see it."""

    def __init__(self, client: RedisClient, where: str, cluster: str) -> None:
        self._client = client
        self._where = where
        self._cluster = cluster

    async def read(self) -> list[ReplicaRecord]:
        """All replicas whose lease runs. Raises RedisError or OSError."""
        return await read_replicas(self._client, self._cluster)

    async def read_first(self) -> list[ReplicaRecord]:
        """As read(), at start. Raises ConfigError that says where."""
        try:
            return await self.read()
        except (RedisError, OSError) as error:
            raise ConfigError(f"Redis at {self._where} cannot be reached: {error}") from None

    async def read_plan(self) -> str | None:
        """The planner's newest document, JSON; None where there is none. Raises Unavailable."""
        try:
            text = await self._client.get(plan_key(self._cluster))
        except (RedisError, OSError) as error:
            raise self._away(error) from None
        return text.decode() if isinstance(text, bytes) else text

    async def read_by_hand(self) -> dict[str, str]:
        """Sizes that people asked for, JSON by pool. Raises Unavailable."""
        try:
            found: Any = await self._client.hgetall(scale_key(self._cluster))
        except (RedisError, OSError) as error:
            raise self._away(error) from None
        return {pool.decode(): text.decode() for pool, text in found.items()}

    def _away(self, error: Exception) -> Unavailable:
        return Unavailable(f"Redis at {self._where} is away: {error}")

    async def run(
        self, on_records: Callable[[Sequence[ReplicaRecord]], None], on_lost: Callable[[], None]
    ) -> None:
        up = True
        while True:
            try:
                records = await self.read()
            except (RedisError, OSError) as error:
                if up:
                    log.warning("Redis is away, routing goes on without it: %s", error)
                up = False
                on_lost()
            else:
                if not up:
                    log.warning("Redis is back")
                up = True
                on_records(records)
            await asyncio.sleep(READ_EVERY_S)
