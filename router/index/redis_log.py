"""Keeps the mirror in step with the workers: their event logs in Redis, snapshots for the gaps.

A cursor is one replica's place in its log. It counts `seq`; what does not follow on (events lost or
trimmed, Redis emptied, a new incarnation) is sought where it is cheapest first: the whole log once
more, the snapshot in Redis, the worker itself. While Redis is away the workers are asked now and
then, and so is a worker that lives and whose lease has run out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from redis.exceptions import RedisError

from router.index.memory import PIECE
from router.index.prefix import PrefixMirror
from router.index.redis_reader import READ_COUNT, START, Entries, Entry, RedisReader
from router.replica import Replica
from workers.core.clock import Clock
from workers.core.errors import KvasirError
from workers.core.hashing import BlockId
from workers.wire import worker_pb2 as worker

log = logging.getLogger(__name__)

BLOCK_MS = 500  # one read waits so long; a new replica waits no longer to be read
GATHER_S = 0.02  # after what was new: many workers then share one read
RETRY_S = 0.5
ALONE_S = 10.0  # between two snapshots of a worker while Redis is away from us or from it


class Rung(IntEnum):
    """Where what is missing was sought last; the next gap climbs one higher."""

    NONE = 0
    LOG = 1
    SAVED = 2
    WORKER = 3


@dataclass(slots=True)
class _Cursor:
    replica: Replica
    incarnation: str
    seq: int = -1  # last event applied
    place: bytes = START  # last entry read
    rung: Rung = Rung.LOG
    missing: bool = True  # something before the place was not found yet
    asking: bool = False  # the worker, in a task of its own
    asked_at: float = -ALONE_S
    leased_at: float = -ALONE_S  # when it was last seen to be registered

    @property
    def due(self) -> int:
        """The last event that is known to have stood in Redis."""
        record = self.replica.record
        return record.event_seq if record.incarnation == self.incarnation else 0


@dataclass(slots=True)
class Repairs:
    """How often what was missing was found where."""

    log: int = 0
    saved: int = 0
    worker: int = 0


class RedisLog:
    """A PoolListener that fills `index`. run() reads until cancelled; Redis may come and go."""

    def __init__(self, reader: RedisReader, index: PrefixMirror, clock: Clock) -> None:
        self.repairs = Repairs()
        self._reader = reader
        self._index = index
        self._clock = clock
        self._cursors: dict[str, _Cursor] = {}
        self._up = False
        self._tasks = asyncio.TaskGroup()

    def reported(self, replica: Replica, load: worker.LoadReport) -> None:
        cursor = self._cursors.get(replica.id)
        if cursor is None or cursor.incarnation != load.replica.incarnation:
            self._index.clear(replica.id)
            self._cursors[replica.id] = _Cursor(replica, load.replica.incarnation)

    def lost(self, replica: Replica) -> None:
        self._index.clear(replica.id)
        self._cursors.pop(replica.id, None)

    def forgotten(self, replica: Replica) -> None:
        """It was lost before: nothing of it is here."""
        assert replica.id not in self._cursors, replica.tell()

    def synced(self, replica: str) -> bool:
        """Redis is there and the mirror holds all that the replica has told so far."""
        cursor = self._cursors.get(replica)
        return self._up and cursor is not None and not cursor.missing and cursor.seq >= cursor.due

    def seq(self, replica: str) -> int:
        """The event after which the mirror stands; -1 if it cannot say."""
        cursor = self._cursors.get(replica)
        return cursor.seq if cursor is not None and not cursor.missing else -1

    def distrust(self, replica: str) -> None:
        """What the mirror has of it is wrong: the worker is to be asked."""
        cursor = self._cursors.get(replica)
        if cursor is not None:
            cursor.rung, cursor.missing = Rung.SAVED, True

    async def run(self) -> None:
        async with self._tasks:
            while True:
                try:
                    await self._mend()
                    await self._read()
                    self._up = True
                except (RedisError, OSError) as error:
                    log.debug("event log: %s", error)
                    self._up = False
                    self._ask_workers()
                    await asyncio.sleep(RETRY_S)

    async def _mend(self) -> None:
        now = self._clock.now()
        for name, cursor in tuple(self._cursors.items()):
            if cursor.replica.leased:
                cursor.leased_at = now
            if cursor.asking:
                continue
            if cursor.missing:
                await self._climb(name, cursor)
            elif now - max(cursor.leased_at, cursor.asked_at) >= ALONE_S:
                self._ask(name, cursor, cursor.place)  # Redis hears nothing of it

    async def _climb(self, name: str, cursor: _Cursor) -> None:
        """Seeks what is missing on the next rung."""
        if cursor.rung is Rung.NONE:
            cursor.rung, cursor.missing, cursor.place = Rung.LOG, False, START
            return
        if cursor.rung is Rung.LOG:
            cursor.rung = Rung.SAVED
            saved = await self._reader.saved(name)
            if (
                saved is not None
                and saved.incarnation == cursor.incarnation
                and saved.seq > cursor.seq
                and await self._replace(name, cursor, saved.blocks)
            ):
                cursor.seq, cursor.place, cursor.missing = saved.seq, saved.at, False
                self.repairs.saved += 1
                return
        # the place first: what is published after it is read, known to the snapshot or not
        place = await self._reader.last_place(name)
        self._ask(name, cursor, place)

    def _ask_workers(self) -> None:
        """Redis is away: what it will have when it is back is read from its start."""
        long_ago = self._clock.now() - ALONE_S
        for name, cursor in tuple(self._cursors.items()):
            if cursor.asked_at <= long_ago and not cursor.asking:
                self._ask(name, cursor, START)

    def _ask(self, name: str, cursor: _Cursor, place: bytes) -> None:
        """Beside everything else: a worker that hangs must not hold up the logs of others."""
        cursor.asking, cursor.missing, cursor.rung = True, True, Rung.SAVED
        cursor.asked_at = self._clock.now()
        self._tasks.create_task(self._take_snapshot(name, cursor, place))

    async def _take_snapshot(self, name: str, cursor: _Cursor, place: bytes) -> None:
        try:
            incarnation, seq, blocks = await cursor.replica.client.snapshot()
            # else it died or restarted meanwhile; the pool says so in a moment
            if incarnation == cursor.incarnation and await self._replace(name, cursor, blocks):
                cursor.seq, cursor.place = seq, place
                cursor.rung, cursor.missing = Rung.WORKER, False
                self.repairs.worker += 1
        except KvasirError as error:
            log.warning("no snapshot of replica %s yet: %s", name, error.message)
        finally:
            cursor.asking = False

    async def _replace(self, name: str, cursor: _Cursor, blocks: Sequence[BlockId]) -> bool:
        """False if the replica was lost or restarted in the middle: then nothing was changed."""
        pieces, done = self._index.replace(name, blocks), object()
        try:
            while self._cursors.get(name) is cursor:
                if next(pieces, done) is done:
                    return True
                await asyncio.sleep(0)
            return False
        finally:
            pieces.close()

    async def _read(self) -> None:
        followed = {n: c for n, c in self._cursors.items() if not c.missing}
        if not followed:
            await asyncio.sleep(BLOCK_MS / 1000)
            return
        due = {name: cursor.due for name, cursor in followed.items()}
        places = {name: cursor.place for name, cursor in followed.items()}
        found = await self._reader.read(places, BLOCK_MS)
        for name, cursor in followed.items():
            if cursor.missing:
                continue  # since then
            if name in found:
                await self._take(name, cursor, found[name])
            elif cursor.seq < due[name]:  # it stood there and is gone
                log.info("replica %s: events %d to %d are lost", name, cursor.seq + 1, due[name])
                cursor.missing = True
            else:
                cursor.rung = Rung.NONE  # in step with all there is
        if found and all(len(entries) < READ_COUNT for entries in found.values()):
            await asyncio.sleep(GATHER_S)

    async def _take(self, name: str, cursor: _Cursor, entries: Entries) -> None:
        """Applies what follows on; stops at a gap."""
        blocks = 0
        for place, entry in entries:
            if self._cursors.get(name) is not cursor or cursor.missing:
                return
            if not self._follows(name, cursor, entry):
                cursor.missing = True
                return
            cursor.place = place
            if entry is None or entry.incarnation != cursor.incarnation or entry.seq <= cursor.seq:
                continue  # another life, or a snapshot knew it
            self._index.apply(name, entry.events)
            cursor.seq = entry.seq
            if cursor.rung is Rung.LOG:
                self.repairs.log += 1
            cursor.rung = Rung.NONE
            blocks += sum(len(event.blocks) for event in entry.events)
            if blocks >= PIECE:
                blocks = 0
                await asyncio.sleep(0)

    def _follows(self, name: str, cursor: _Cursor, entry: Entry | None) -> bool:
        if entry is None:
            return False
        if entry.incarnation != cursor.incarnation or entry.seq <= cursor.seq + 1:
            return True
        log.info("replica %s: events %d to %d are missing", name, cursor.seq + 1, entry.seq - 1)
        return False
