"""What workers wrote to Redis about their prefix caches, read. Raises RedisError and OSError."""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.core.events import KVEvent
from workers.core.hashing import BlockId
from workers.wire.redis_client import RedisClient
from workers.wire.redis_keys import blocks_key, events_key, unpack_events, unpack_ids

log = logging.getLogger(__name__)

START = b"0-0"  # before the first entry of any stream
READ_COUNT = 64  # entries of one stream taken at once


@dataclass(frozen=True, slots=True)
class Saved:
    """A snapshot: `blocks` are cached after event `seq`; the log goes on after the entry `at`."""

    incarnation: str
    seq: int
    at: bytes
    blocks: Sequence[BlockId]


@dataclass(frozen=True, slots=True)
class Entry:
    """What changed with event `seq`."""

    incarnation: str
    seq: int
    events: Sequence[KVEvent]


Entries = list[tuple[bytes, Entry | None]]  # place, and None for what cannot be read


class RedisReader:
    def __init__(self, client: RedisClient, cluster: str) -> None:
        self._client = client
        self._cluster = cluster

    async def saved(self, replica: str) -> Saved | None:
        """The replica's last snapshot; None if there is none that can be read."""
        key = blocks_key(self._cluster, replica)
        fields: Any = await self._client.hgetall(key)
        try:
            incarnation, seq = fields[b"inc"].decode(), int(fields[b"seq"])
            return Saved(incarnation, seq, fields[b"at"], unpack_ids(fields[b"data"]))
        except (KeyError, ValueError, struct.error) as error:
            if fields:
                log.warning("replica %s: a snapshot that cannot be read: %r", replica, error)
            return None

    async def last_place(self, replica: str) -> bytes:
        """Of the newest entry of its log."""
        key = events_key(self._cluster, replica)
        last: Any = await self._client.xrevrange(key, count=1)
        place: bytes = last[0][0] if last else START
        return place

    async def read(
        self, places: Mapping[str, bytes], block_ms: int | None = None
    ) -> dict[str, Entries]:
        """Up to READ_COUNT entries after each replica's place, waiting for the first of any."""
        names = {events_key(self._cluster, name).encode(): name for name in places}
        streams: Any = {key: places[name] for key, name in names.items()}
        reply: Any = await self._client.xread(streams, count=READ_COUNT, block=block_ms)
        return {
            names[key]: [(place, _entry(names[key], fields)) for place, fields in entries]
            for key, entries in reply
        }

    async def named(self) -> set[str]:
        """Ids of all replicas that have a log or a snapshot."""
        found = set()
        for key in (events_key, blocks_key):
            pattern = key(self._cluster, "*")
            for name in await self._client.keys_like(pattern):
                found.add(name.decode()[len(pattern) - 1 :])
        return found

    async def delete(self, replica: str) -> None:
        """Log and snapshot. A worker that lives writes a new snapshot within RENEW_S."""
        names = (events_key(self._cluster, replica), blocks_key(self._cluster, replica))
        await self._client.delete(*names)


def _entry(replica: str, fields: Mapping[bytes, bytes]) -> Entry | None:
    try:
        incarnation, seq = fields[b"inc"].decode(), int(fields[b"seq"])
        return Entry(incarnation, seq, unpack_events(fields[b"data"]))
    except (KeyError, ValueError, struct.error) as error:
        log.warning("replica %s: an event that cannot be read: %r", replica, error)
        return None
