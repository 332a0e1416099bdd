"""Keeps the mirror in step with the workers: their event streams in Redis, snapshots for the gaps.

A cursor is one replica's place in its stream. It counts `seq`; whatever does not follow on (events
lost or trimmed, Redis gone and back, a new incarnation) is mended by the worker's own Snapshot.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from router.index.prefix import PrefixMirror
from router.replica import Replica
from router.worker_client import WorkerClient
from workers.core.errors import KvasirError
from workers.core.events import EventKind, KVEvent
from workers.wire import worker_pb2 as worker
from workers.wire.redis_client import RedisClient
from workers.wire.redis_keys import events_key, unpack_events

log = logging.getLogger(__name__)

BLOCK_MS = 500  # one XREAD waits so long; a new replica waits no longer to be read
READ_COUNT = 256  # entries of one stream taken at once
RETRY_S = 0.5


@dataclass(slots=True)
class _Cursor:
    client: WorkerClient
    incarnation: str
    seq: int | None = None  # last event applied; None = needs a snapshot
    position: bytes = b"0-0"  # last stream entry read


class RedisLog:
    """A PoolListener that fills `index`. run() reads until cancelled; Redis may come and go."""

    def __init__(self, client: RedisClient, cluster: str, index: PrefixMirror) -> None:
        self._client = client
        self._cluster = cluster
        self._index = index
        self._cursors: dict[str, _Cursor] = {}
        self.snapshots = 0

    def reported(self, replica: Replica, load: worker.LoadReport) -> None:
        cursor = self._cursors.get(replica.id)
        if cursor is None or cursor.incarnation != load.replica.incarnation:
            self._index.clear(replica.id)
            self._cursors[replica.id] = _Cursor(replica.client, load.replica.incarnation)

    def lost(self, replica: Replica) -> None:
        self._index.clear(replica.id)
        self._cursors.pop(replica.id, None)

    def forgotten(self, replica: Replica) -> None:
        """It was lost before: nothing of it is here."""
        assert replica.id not in self._cursors, replica.tell()

    async def run(self) -> None:
        while True:
            try:
                await self._mend()
                await self._read()
            except (RedisError, OSError) as error:
                log.debug("event log: %s", error)
                for cursor in self._cursors.values():
                    cursor.seq = None  # what was published meanwhile may be gone
                await asyncio.sleep(RETRY_S)

    def synced(self, replica: str) -> bool:
        """The mirror holds all that the replica has told so far."""
        cursor = self._cursors.get(replica)
        return cursor is not None and cursor.seq is not None

    async def _mend(self) -> None:
        needy = [(name, cursor) for name, cursor in self._cursors.items() if cursor.seq is None]
        if not needy:
            return
        for name, cursor in needy:
            # the place first: what is published after it is read, known to the snapshot or not
            last: Any = await self._client.xrevrange(events_key(self._cluster, name), count=1)
            cursor.position = last[0][0] if last else b"0-0"
        async with asyncio.TaskGroup() as tasks:
            for name, cursor in needy:
                tasks.create_task(self._snapshot(name, cursor))

    async def _snapshot(self, name: str, cursor: _Cursor) -> None:
        try:
            incarnation, seq, blocks = await cursor.client.snapshot()
        except KvasirError as error:
            log.warning("no snapshot of replica %s yet: %s", name, error.message)
            return
        if self._cursors.get(name) is not cursor or incarnation != cursor.incarnation:
            return  # it died or restarted meanwhile; the pool says so in a moment
        stored = KVEvent(EventKind.STORED, blocks)
        self._index.apply(name, [KVEvent(EventKind.CLEARED), stored])
        cursor.seq = seq
        self.snapshots += 1

    async def _read(self) -> None:
        streams = {
            events_key(self._cluster, name): (name, cursor)
            for name, cursor in self._cursors.items()
            if cursor.seq is not None
        }
        if not streams:
            await asyncio.sleep(BLOCK_MS / 1000)
            return
        places: dict[Any, Any] = {key: cursor.position for key, (_, cursor) in streams.items()}
        reply: Any = await self._client.xread(places, count=READ_COUNT, block=BLOCK_MS)
        for key, entries in reply:
            name, cursor = streams[key.decode()]
            if self._cursors.get(name) is not cursor:
                continue
            for position, fields in entries:
                cursor.position = position
                if cursor.seq is not None:
                    cursor.seq = self._apply(name, cursor.incarnation, cursor.seq, fields)

    def _apply(
        self, name: str, incarnation: str, seq: int, fields: Mapping[bytes, bytes]
    ) -> int | None:
        """One entry; returns the new seq, None if entries are missing before it."""
        try:
            theirs, number = fields[b"inc"].decode(), int(fields[b"seq"])
            events = unpack_events(fields[b"data"])
        except (KeyError, ValueError, struct.error) as error:
            log.warning("replica %s: an event that cannot be read: %r", name, error)
            return None
        if theirs != incarnation or number <= seq:
            return seq  # another life, or the snapshot knew it
        if number != seq + 1:
            log.info("replica %s: events %d to %d are missing", name, seq + 1, number - 1)
            return None
        self._index.apply(name, events)
        return number
