"""Who is registered: the replica records in Redis, read once a second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from redis.exceptions import RedisError

from workers.core.errors import ConfigError
from workers.wire.redis_client import RedisClient, read_replicas
from workers.wire.redis_keys import ReplicaRecord, without_password

log = logging.getLogger(__name__)

READ_EVERY_S = 1.0


class RegistryReader:
    """Reads until cancelled. `on_records` gets all records; `on_lost` hears that Redis is away."""

    def __init__(self, client: RedisClient, url: str, cluster: str) -> None:
        self._client = client
        self._url = without_password(url)
        self._cluster = cluster

    async def read(self) -> list[ReplicaRecord]:
        """All replicas whose lease runs. Raises RedisError or OSError."""
        return await read_replicas(self._client, self._cluster)

    async def read_first(self) -> list[ReplicaRecord]:
        """As read(), at start. Raises ConfigError that names the URL."""
        try:
            return await self.read()
        except (RedisError, OSError) as error:
            raise ConfigError(f"Redis at {self._url} cannot be reached: {error}") from None

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
