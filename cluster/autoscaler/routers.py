"""All routers of a cluster: what is offered to them, who waits there, and roles set through one."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple

from cluster.access import Access
from cluster.admin_client import AdminClient, follow_record
from workers.core.clock import Clock
from workers.core.errors import Unavailable
from workers.core.roles import RoleName
from workers.wire import admin_pb2 as admin
from workers.wire.codec import role_to_wire

log = logging.getLogger("kvasir.planner")

AGAIN_S = 0.5  # after a router went away
RESOLVE_S = 5.0
GONE_S = 30.0  # without a word: what it had goes to others by now
SALT_BYTES = 16  # hashes are of no use here, and of tenants alone


@dataclass(slots=True)
class _Heard:
    """`since`: without a gap; None: it is away, since `lost`."""

    follow: asyncio.Task[None]
    since: float | None = None
    lost: float = 0.0


class There(NamedTuple):
    """Requests at this moment. `queued`: those that wait in front of the cluster, by class;
    `in_flight`: all that were let in."""

    queued: Counter[str]
    in_flight: int


class Routers:
    """`names` are host:port; a host with several addresses stands for a router at each."""

    def __init__(
        self,
        names: Sequence[str],
        heard: Callable[[admin.RecordedBatch], None],
        clock: Clock,
        access: Callable[[], Access] = Access,
    ) -> None:
        self._names = names
        self._heard = heard
        self._clock = clock
        self._access = access
        self._routers: dict[str, _Heard] = {}

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                addresses = {a for name in self._names for a in await _addresses(name)}
                for gone in self._routers.keys() - addresses:
                    self._routers.pop(gone).follow.cancel()
                for new in addresses - self._routers.keys():
                    follow = tasks.create_task(self._follow(new), name=f"record {new}")
                    self._routers[new] = _Heard(follow, lost=self._clock.now())
                await asyncio.sleep(RESOLVE_S)

    def heard_since(self, began: float) -> bool:
        """Whether nothing was missed since then; who is long away misses nothing."""
        now = self._clock.now()
        present = [each for each in self._routers.values() if each.since is not None]
        away = [each for each in self._routers.values() if each.since is None]
        return (
            bool(present)
            and all(each.since <= began for each in present if each.since is not None)
            and all(now - each.lost > GONE_S for each in away)
        )

    async def there(self) -> There:
        """Raises Unavailable."""
        queued: Counter[str] = Counter()
        in_flight = 0
        for address in self._present():
            status = await asyncio.to_thread(_status, address, self._access())
            queued.update({each.name: each.queued for each in status.classes})
            in_flight += status.requests_in_flight
        return There(queued, in_flight)

    async def set_role(self, replica: str, role: RoleName) -> None:
        """Raises Unavailable, and InvalidRequest where the router refuses."""
        for address in self._present():
            await asyncio.to_thread(_set_role, address, self._access(), replica, role)
            return
        raise Unavailable("no router is there to set a role")

    def _present(self) -> list[str]:
        return [name for name, each in self._routers.items() if each.since is not None]

    async def _follow(self, address: str) -> None:
        asked = admin.RecordRequest(
            salt=secrets.token_bytes(SALT_BYTES), no_blocks=True, arrivals=True
        )
        while True:
            try:
                async with aclosing(follow_record(address, asked, self._access())) as batches:
                    async for batch in batches:
                        self._note(address, batch)
            except Unavailable as error:
                me = self._routers[address]
                if me.since is not None:
                    log.warning("router %s is away: %s", address, error.message)
                    me.since, me.lost = None, self._clock.now()
            await asyncio.sleep(AGAIN_S)

    def _note(self, address: str, batch: admin.RecordedBatch) -> None:
        me = self._routers[address]
        if me.since is None:
            log.info("router %s is heard", address)
            me.since = self._clock.now()
        if batch.lost:
            log.warning("router %s: %d rows were lost", address, batch.lost)
        self._heard(batch)


async def _addresses(name: str) -> list[str]:
    """All that the host resolves to, where that is more than one."""
    host, _, port = name.rpartition(":")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )
    except OSError as error:
        log.warning("router %s: %s", name, error)
        return []
    hosts = sorted({str(address[4][0]) for address in found})
    families = {address[0] for address in found}
    if len(hosts) == 1 or len(families) > 1:  # one host, by both families
        return [name]
    return [f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in hosts]


def _status(address: str, access: Access) -> admin.StatusResponse:
    with AdminClient(address, access) as client:
        return client.status()


def _set_role(address: str, access: Access, replica: str, role: RoleName) -> None:
    with AdminClient(address, access) as client:
        client.set_role(replica, role_to_wire(role))
