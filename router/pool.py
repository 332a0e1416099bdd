"""Every replica the router knows, each kept alive in its eyes by one Watch stream.

Leases say who exists, Watch streams say who lives: with Redis away nobody is dropped, and a worker
restarted at its old address is met again as soon as it answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from router.replica import Replica, ReplicaState
from router.worker_client import WorkerClient, WorkerFailed
from workers.core.errors import KvasirError
from workers.core.roles import RoleName
from workers.wire import worker_pb2 as worker
from workers.wire.redis_keys import ReplicaRecord

log = logging.getLogger(__name__)

WATCH_EVERY_S = 0.5
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0


class PoolListener(Protocol):
    """Hears about replicas, in the order in which things happen to them."""

    def reported(self, replica: Replica, load: worker.LoadReport) -> None: ...

    def lost(self, replica: Replica) -> None:
        """It is down: what it cached and measured is void."""

    def forgotten(self, replica: Replica) -> None: ...


@dataclass(slots=True)
class _Member:
    replica: Replica
    follow: asyncio.Task[None]


class Pool:
    """`async with Pool(...)`; then sync() from the registry. Placement iterates it."""

    def __init__(
        self,
        silence_s: float,
        listeners: Iterable[PoolListener] = (),
        *,
        client_of: Callable[[str, str], WorkerClient] = WorkerClient,
    ) -> None:
        """`client_of(replica, address)`: how a worker is spoken to."""
        self.redis_up = False
        self._silence_s = silence_s
        self._client_of = client_of
        self._listeners = tuple(listeners)
        self._members: dict[str, _Member] = {}
        self._changed = asyncio.Event()
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Pool:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for member in self._members.values():
            member.follow.cancel()
        await self._tasks.__aexit__(kind, error, trace)

    def __iter__(self) -> Iterator[Replica]:
        return iter([member.replica for member in self._members.values()])

    def __len__(self) -> int:
        return len(self._members)

    def get(self, replica: str) -> Replica | None:
        member = self._members.get(replica)
        return member.replica if member is not None else None

    def count_up(self, role: RoleName) -> int:
        return sum(replica.up and replica.role == role for replica in self)

    async def wait_changed(self) -> None:
        """Until a replica comes, goes or changes its state or role, or wake() is called."""
        await self._changed.wait()

    def wake(self) -> None:
        """Whoever waits for a change looks again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def sync(self, records: Iterable[ReplicaRecord]) -> None:
        """Redis is up and these leases run. Others are forgotten once their Watch is broken too."""
        self.redis_up = True
        seen = {record.id: record for record in records}
        for record in seen.values():
            self._learn(record)
        for member in tuple(self._members.values()):
            replica = member.replica
            replica.leased = replica.id in seen
            if not replica.leased and replica.state is ReplicaState.DOWN:
                self._forget(member)

    def redis_lost(self) -> None:
        self.redis_up = False

    def check_integrity(self) -> None:
        for name, member in self._members.items():
            assert member.replica.id == name and not member.follow.done(), member.replica.tell()
            member.replica.check_integrity()

    def _learn(self, record: ReplicaRecord) -> None:
        member = self._members.get(record.id)
        if member is not None and member.replica.record.address == record.address:
            member.replica.record = record
            return
        if member is not None:
            self._forget(member)  # it moved: the old address is somebody else's or nobody's
        client = self._client_of(record.id, record.address)
        replica = Replica(record, client)
        follow = self._tasks.create_task(self._follow(replica), name=f"watch {record.id}")
        self._members[record.id] = _Member(replica, follow)

    def _forget(self, member: _Member) -> None:
        replica = member.replica
        del self._members[replica.id]
        member.follow.cancel()
        self._lose(replica, "forgotten")
        log.info("replica %s is forgotten", replica.id)
        self._tell(lambda listener: listener.forgotten(replica))

    async def _follow(self, replica: Replica) -> None:
        """Watch, mark it down when the stream breaks, call again; until cancelled."""
        pause = FIRST_PAUSE_S
        try:
            while True:
                if await self._watch(replica):
                    pause = FIRST_PAUSE_S
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                replica.move(ReplicaState.CONNECTING, "calling again")
        finally:
            await replica.client.close()

    async def _watch(self, replica: Replica) -> bool:
        """One Watch stream to its end; then the replica is down. True if it said anything."""
        stream = replica.client.watch(WATCH_EVERY_S)
        heard = False
        try:
            while (load := await stream.read(self._silence_s)) is not None:
                if load.replica.id != replica.id:
                    raise WorkerFailed(f"{replica.record.address} is {load.replica.id!r} now")
                heard = True
                self._take(replica, load)
            self._lose(replica, "it ended its Watch stream")
        except KvasirError as error:
            self._lose(replica, error.message)
        finally:
            stream.cancel()
        return heard

    def _take(self, replica: Replica, load: worker.LoadReport) -> None:
        before = replica.state, replica.role
        replica.report(load)
        self._tell(lambda listener: listener.reported(replica, load))
        if (replica.state, replica.role) != before:
            log.info("replica %s is %s (%s)", replica.id, replica.state, replica.role)
            self.wake()

    def _lose(self, replica: Replica, why: str) -> None:
        if replica.state is ReplicaState.DOWN:
            return
        if replica.alive:
            log.warning("replica %s is down: %s", replica.id, why)
        replica.lost(why)
        self._tell(lambda listener: listener.lost(replica))
        self.wake()

    def _tell(self, say: Callable[[PoolListener], None]) -> None:
        for listener in self._listeners:
            say(listener)
