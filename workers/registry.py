"""What a worker keeps in Redis: its lease and its prefix-cache events. Redis may come and go: the
worker never waits for it, and registers again as soon as it is back."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from redis.exceptions import RedisError

from workers.event_log import EventPublisher
from workers.wire.redis_client import RedisClient, connect_redis
from workers.wire.redis_keys import (
    EVENTS_KEPT,
    LEASE_S,
    RENEW_S,
    ReplicaRecord,
    events_key,
    pack_events,
    replica_key,
)

log = logging.getLogger("kvasir.registry")
PUBLISH_S = 0.05
STREAM_S = 600


class Registry:
    """`url` None: nobody is told, events are only counted. Raises ConfigError for a bad URL."""

    def __init__(
        self, url: str | None, cluster: str, record: ReplicaRecord, events: EventPublisher
    ) -> None:
        self._record = record
        self._events = events
        self._key = replica_key(cluster, record.id)
        self._stream = events_key(cluster, record.id)
        self._up: bool | None = None
        self._redis = connect_redis(url) if url else None

    async def run(self) -> None:
        """Renew the lease and publish events until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._publish())
            if self._redis is not None:
                tasks.create_task(self._renew(self._redis))

    async def leave(self) -> None:
        """Give the lease back, if Redis is there to take it."""
        if self._redis is None:
            return
        with contextlib.suppress(RedisError, OSError):  # then it expires
            await self._redis.delete(self._key)
        await self._redis.aclose()

    async def _renew(self, client: RedisClient) -> None:
        record = self._record.model_dump_json()
        while True:
            try:
                # SET, not EXPIRE: after a flush or a restart this alone registers again.
                await client.set(self._key, record, px=int(LEASE_S * 1000))
                await client.expire(self._stream, STREAM_S)  # or it would outlive us
                self._note(True)
            except (RedisError, OSError) as error:
                self._note(False, str(error))
            await asyncio.sleep(RENEW_S)

    async def _publish(self) -> None:
        while True:
            self._events.collect()
            try:
                while self._redis is not None and self._events.pending:
                    await self._publish_one(self._redis)
            except (RedisError, OSError):
                await asyncio.sleep(RENEW_S)
            await asyncio.sleep(PUBLISH_S)

    async def _publish_one(self, client: RedisClient) -> None:
        """At least once: after a lost answer the same seq may stand there twice."""
        seq, events = self._events.pending[0]
        await client.xadd(
            self._stream,
            {"inc": self._record.incarnation, "seq": seq, "data": pack_events(events)},
            maxlen=EVENTS_KEPT,
            approximate=True,
        )
        if self._events.pending and self._events.pending[0][0] == seq:
            self._events.pending.popleft()

    def _note(self, up: bool, why: str = "") -> None:
        if up is not self._up:
            if up:
                log.info("registered in Redis as %s", self._record.id)
            else:
                log.warning("Redis is away, serving goes on: %s", why)
            self._up = up
