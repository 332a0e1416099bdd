"""Compares what the workers cache, what Redis says of it, and what this router's mirror believes.

All three move while they are read. A worker's table stands after one event; log and mirror are
compared with it after that very event, or the table is carried forward along the log to where the
mirror stands. To mend: Redis is cleared, so that the worker writes it anew; the mirror asks the
worker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from router.index.prefix import PrefixMirror
from router.index.redis_log import RedisLog, Repairs
from router.index.redis_reader import START, Entry, RedisReader, Saved
from router.pool import Pool
from router.replica import Replica
from workers.core.clock import Clock
from workers.core.errors import KvasirError
from workers.core.events import EventKind
from workers.core.hashing import BlockId
from workers.wire import admin_pb2 as admin
from workers.wire.redis_keys import RENEW_S

log = logging.getLogger(__name__)

SETTLE_S = 4.0  # for log and mirror to come to where the worker was
POLL_S = 0.05
MEND_S = 4 * RENEW_S  # for a worker to see that its snapshot is gone and to write another
REDIS = "redis: "  # so begins a fault that is not the worker's, nor the mirror's


class _Fault(Exception):
    """Why something could not be compared."""


@dataclass(slots=True)
class _Table:
    """The blocks of one incarnation after event `seq`; entries after `place` carry it forward."""

    incarnation: str
    seq: int
    blocks: set[BlockId] = field(default_factory=set)
    place: bytes = START

    def carry(self, entries: Iterable[tuple[bytes, Entry | None]], last: int) -> None:
        """As far as event `last`. Raises _Fault at a gap."""
        for place, entry in entries:
            if entry is None:
                raise _Fault(f"the log has an entry that cannot be read after event {self.seq}")
            if entry.incarnation == self.incarnation and entry.seq > self.seq:
                if entry.seq > last:
                    return
                if entry.seq != self.seq + 1:
                    raise _Fault(f"the log lacks events {self.seq + 1} to {entry.seq - 1}")
                for event in entry.events:
                    if event.kind is EventKind.STORED:
                        self.blocks.update(event.blocks)
                    elif event.kind is EventKind.REMOVED:
                        self.blocks.difference_update(event.blocks)
                    else:
                        self.blocks.clear()
                self.seq = entry.seq
            self.place = place


class Fsck:
    """One check at a time; each reads every table whole."""

    def __init__(
        self, pool: Pool, index: PrefixMirror, log: RedisLog, reader: RedisReader, clock: Clock
    ) -> None:
        self._pool = pool
        self._index = index
        self._log = log
        self._reader = reader
        self._clock = clock
        self._one = asyncio.Lock()

    @property
    def repairs(self) -> Repairs:
        return self._log.repairs

    async def run(self, repair: bool) -> admin.FsckResponse:
        """With `repair`, what differed is mended and compared again."""
        async with self._one:
            found = [await self._check(replica) for replica in self._pool]
            orphans, redis_up = await self._orphans(repair)
            if repair:
                found = [await self._repaired(one) for one in found]
            return admin.FsckResponse(replicas=found, orphans=orphans, redis_up=redis_up)

    async def _check(self, replica: Replica) -> admin.FsckReplica:
        found = admin.FsckReplica(replica=replica.id, incarnation=replica.incarnation)
        found.mirror_blocks = self._index.count(replica.id)
        if not replica.alive:
            found.mirror_extra = found.mirror_blocks
            return found
        try:
            saved = await self._saved(replica.id)  # first: it must not be ahead of the table
            incarnation, seq, blocks = await replica.client.snapshot()
        except KvasirError as error:
            found.faults.append(f"worker: {error.message}")
            return found
        table = _Table(incarnation, seq, set(blocks))
        found.table_blocks, found.event_seq = len(table.blocks), seq
        try:
            await self._check_log(replica.id, saved, table, found)
        except (RedisError, OSError, _Fault) as error:
            found.faults.append(f"{REDIS}{error}")
        try:
            await self._check_mirror(replica.id, table, found)
        except (RedisError, OSError, _Fault) as error:
            found.faults.append(f"mirror: {error}")
        return found

    async def _saved(self, name: str) -> Saved | None:
        try:
            return await self._reader.saved(name)
        except (RedisError, OSError):
            return None

    async def _check_log(
        self, name: str, saved: Saved | None, table: _Table, found: admin.FsckReplica
    ) -> None:
        if saved is None or saved.incarnation != table.incarnation:
            raise _Fault("no snapshot of this incarnation")
        if saved.seq > table.seq:
            raise _Fault(f"the snapshot stands after event {saved.seq}, there were {table.seq}")
        told = _Table(saved.incarnation, saved.seq, set(saved.blocks), saved.at)
        deadline = self._clock.now() + SETTLE_S
        while told.seq < table.seq:
            told.carry(await self._entries(name, told.place), table.seq)
            if self._clock.now() > deadline:
                raise _Fault(f"behind: event {told.seq} of {table.seq}")
            await asyncio.sleep(POLL_S if told.seq < table.seq else 0)
        table.place = told.place
        found.log_blocks = len(told.blocks)
        found.log_missing = len(table.blocks - told.blocks)
        found.log_extra = len(told.blocks - table.blocks)

    async def _check_mirror(self, name: str, table: _Table, found: admin.FsckReplica) -> None:
        deadline = self._clock.now() + SETTLE_S
        while (stands := self._log.seq(name)) != table.seq:
            if self._clock.now() > deadline:
                raise _Fault(f"at event {stands}, the worker's table at {table.seq}")
            if stands > table.seq:
                table.carry(await self._entries(name, table.place), stands)
            else:
                await asyncio.sleep(POLL_S)
        held = self._index.held(name)  # no await since its place was seen
        found.mirror_blocks = len(held)
        found.mirror_extra = len(held - table.blocks)
        if not self._index.evicted:  # a mirror at its cap knows less, by intent
            found.mirror_missing = len(table.blocks - held)

    async def _entries(self, name: str, place: bytes) -> list[tuple[bytes, Entry | None]]:
        return (await self._reader.read({name: place})).get(name, [])

    async def _orphans(self, repair: bool) -> tuple[list[str], bool]:
        """Replicas that nobody knows and of which Redis has a table; True if Redis answered."""
        try:
            orphans = await self._reader.named() - {replica.id for replica in self._pool}
            for name in orphans if repair else ():
                await self._reader.delete(name)
        except (RedisError, OSError):
            return [], False
        return sorted(orphans), True

    async def _repaired(self, found: admin.FsckReplica) -> admin.FsckReplica:
        """What it is after mending, with what it was."""
        replica = self._pool.get(found.replica)
        if replica is None or not differs(found):
            return found
        log.warning("fsck mends %s: %s", found.replica, " ".join(str(found).split()))
        if not replica.alive:
            self._index.clear(replica.id)
        else:
            try:
                await self._rewrite(found)
            except (RedisError, OSError) as error:
                log.warning("fsck: %s", error)
            self._log.distrust(replica.id)
            await self._settle(replica.id)
        after = await self._check(replica)
        found.mended = not differs(after)
        found.faults.extend(f"after mending: {fault}" for fault in after.faults)
        return found

    async def _rewrite(self, found: admin.FsckReplica) -> None:
        """Redis loses its table of the replica, until the worker has written another."""
        wrong = any(fault.startswith(REDIS) for fault in found.faults)
        if not (found.log_missing or found.log_extra or wrong):
            return
        await self._reader.delete(found.replica)
        deadline = self._clock.now() + MEND_S
        while await self._reader.saved(found.replica) is None:
            if self._clock.now() > deadline:
                return
            await asyncio.sleep(POLL_S)

    async def _settle(self, name: str) -> None:
        deadline = self._clock.now() + SETTLE_S
        while self._clock.now() < deadline and self._log.seq(name) < 0:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)


def differs(found: admin.FsckReplica) -> bool:
    numbers = (found.log_missing, found.log_extra, found.mirror_missing, found.mirror_extra)
    return any(numbers) or bool(found.faults)
