"""What a worker keeps in Redis: its lease, its prefix-cache events and now and then a snapshot of
its whole table. Redis may come and go, and lose what it had: the worker never waits for it,
registers again as soon as it is back, and writes a new snapshot when its last one is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from redis.exceptions import RedisError

from workers.core.roles import RoleName
from workers.core.waits import happens
from workers.event_log import EventPublisher
from workers.wire.redis_client import RedisClient, connect_redis, read_replicas
from workers.wire.redis_endpoint import RedisEndpoint
from workers.wire.redis_keys import (
    EVENTS_KEPT,
    LEASE_S,
    RENEW_S,
    ReplicaRecord,
    blocks_key,
    events_key,
    pack_events,
    pack_ids,
    replica_key,
)

log = logging.getLogger("kvasir.registry")
PUBLISH_S = 0.05
STREAM_S = 600
START = b"0-0"  # before the first entry of any stream


class Registry:
    """`redis` None: nobody is told, events are only counted. Raises ConfigError for a bad URL."""

    def __init__(
        self,
        redis: RedisEndpoint | None,
        cluster: str,
        record: ReplicaRecord,
        events: EventPublisher,
    ) -> None:
        self._cluster = cluster
        self._record = record
        self._events = events
        self._key = replica_key(cluster, record.id)
        self._stream = events_key(cluster, record.id)
        self._blocks = blocks_key(cluster, record.id)
        self._saved: list[bytes] | None = None  # inc and seq of the snapshot in Redis
        self._saved_at = START
        self._place = START  # of the last entry written
        self._up: bool | None = None
        self._news = asyncio.Event()  # the record is another one
        self._redis = connect_redis(redis) if redis else None

    async def run(self) -> None:
        """Renew the lease and publish events until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._publish())
            if self._redis is not None:
                tasks.create_task(self._renew(self._redis))

    def set_role(self, role: RoleName) -> None:
        self._record = self._record.model_copy(update={"role": role})
        self._news.set()

    async def peers(self) -> list[ReplicaRecord] | None:
        """The other replicas of this cluster; None when Redis does not say."""
        if self._redis is None:
            return None
        try:
            records = await read_replicas(self._redis, self._cluster)
        except (RedisError, OSError):
            return None
        return [record for record in records if record.id != self._record.id]

    async def leave(self) -> None:
        """Take everything back out of Redis, if it is there."""
        if self._redis is None:
            return
        with contextlib.suppress(RedisError, OSError):  # then it expires
            await self._redis.delete(self._key, self._stream, self._blocks)
        await self._redis.aclose()

    async def _renew(self, client: RedisClient) -> None:
        while True:
            self._news.clear()
            try:
                # SET, not EXPIRE: after a flush or a restart this alone registers again.
                record = self._record.model_copy(update={"event_seq": self._events.acknowledged})
                await client.set(self._key, record.model_dump_json(), px=int(LEASE_S * 1000))
                for key in (self._stream, self._blocks):
                    await client.expire(key, STREAM_S)  # or it would outlive us
                await self._check_saved(client)
                self._note(True)
            except (RedisError, OSError) as error:
                self._note(False, str(error))
            await happens(self._news, within_s=RENEW_S)

    async def _check_saved(self, client: RedisClient) -> None:
        """Redis may have been emptied, or have lost what it had last."""
        expected = self._saved
        there: Any = await client.hmget(self._blocks, ["inc", "seq"])
        if self._saved is expected and there != expected:
            self._saved = None
            self._saved_at = self._place = START  # its clock may be another one

    async def _publish(self) -> None:
        while True:
            self._events.collect()
            try:
                while self._redis is not None and self._events.pending:
                    await self._publish_one(self._redis)
                if self._redis is not None and (
                    self._saved is None or self._events.snapshot_is_due
                ):
                    await self._save(self._redis)
            except (RedisError, OSError):
                await asyncio.sleep(RENEW_S)
            await asyncio.sleep(PUBLISH_S)

    async def _publish_one(self, client: RedisClient) -> None:
        """At least once: after a lost answer the same seq may stand there twice."""
        seq, events = self._events.pending[0]
        place: Any = await client.xadd(
            self._stream,
            {"inc": self._record.incarnation, "seq": seq, "data": pack_events(events)},
            maxlen=EVENTS_KEPT,
            approximate=True,
        )
        self._place = place
        self._events.acknowledge(seq)

    async def _save(self, client: RedisClient) -> None:
        """A snapshot, all at once; then the log from the last one but one on is enough."""
        seq, blocks = self._events.snapshot()
        fields: dict[Any, Any] = {
            "inc": self._record.incarnation,
            "seq": seq,
            "at": self._place,  # what comes after it may be known to the snapshot, never less
            "data": pack_ids(blocks),
        }
        place = self._place
        await client.hset(self._blocks, mapping=fields)
        self._saved = [self._record.incarnation.encode(), b"%d" % seq]
        self._events.saved(seq, len(blocks))
        await client.expire(self._blocks, STREAM_S)
        await client.xtrim(self._stream, minid=self._saved_at.decode(), approximate=True)
        self._saved_at = place

    def _note(self, up: bool, why: str = "") -> None:
        if up is not self._up:
            if up:
                log.info("registered in Redis as %s", self._record.id)
            else:
                log.warning("Redis is away, serving goes on: %s", why)
            self._up = up
