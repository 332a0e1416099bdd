"""Who of several planners leads: the holder of a Lease, as client-go's leader election has it.

Nobody compares clocks. The holder leads for RENEWED_S since it last *began* a renewal that
succeeded; others wait until the Lease has not changed for LEASE_S, by their own clock, so there is
time between the two in which nobody leads and a write under way ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from kubernetes.aio.client import V1Lease, V1LeaseSpec, V1ObjectMeta

from cluster.backends.kubernetes.api import Api, Conflict, Denied, Missing
from cluster.backends.kubernetes.measures import Measures
from workers.core.clock import Clock, unix_time
from workers.core.errors import Unavailable
from workers.core.waits import let_go

log = logging.getLogger("kvasir.kubernetes")


class Election:
    """`lease_s` as others see it; `renewed_s`, shorter, as we do; `every_s` between attempts."""

    def __init__(
        self,
        api: Api,
        name: str,
        identity: str,
        measures: Measures,
        clock: Clock,
        *,
        lease_s: float = 15.0,
        renewed_s: float = 10.0,
        every_s: float = 2.0,
    ) -> None:
        self.identity = identity
        self.holder = ""  # by what we know
        self._api = api
        self._name = name
        self._measures = measures
        self._clock = clock
        self._lease_s = lease_s
        self._renewed_s = renewed_s
        self._every_s = every_s
        self._until = float("-inf")
        self._seen: V1Lease | None = None
        self._seen_at = 0.0

    @property
    def leads(self) -> bool:
        """Now. Before each write it is to be looked at again."""
        return self._clock.now() < self._until

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """lead() runs while we lead, and is cancelled at once when we do no longer. Its failure
        ends us. Cancelled, we give the Lease back."""
        leading: asyncio.Task[None] | None = None
        try:
            while True:
                await self._attempt()
                if self.leads and leading is None:
                    log.info("%s leads (Lease %s)", self.identity, self._name)
                    leading = asyncio.ensure_future(_run(lead))
                await self._pause(leading)
                if leading is not None and leading.done():
                    return leading.result()
                if leading is not None and not self.leads:
                    log.warning("%s leads no more; %s was seen to", self.identity, self.holder)
                    await let_go(leading)
                    leading = None
                self._measures.leads.set(self.leads)
        finally:
            if leading is not None:
                await let_go(leading)
            await self._release()

    async def _pause(self, leading: asyncio.Task[None] | None) -> None:
        """Until the next attempt, or until what we may do ends."""
        pause = self._every_s
        if self.leads:
            pause = min(pause, self._until - self._clock.now())
        if leading is None:
            await asyncio.sleep(pause)
        else:
            await asyncio.wait({leading}, timeout=pause)

    async def _attempt(self) -> None:
        """To get the Lease, or to keep it."""
        began = self._clock.now()
        within_s = min(self._every_s, self._until - began) if self.leads else self._every_s
        try:
            await self._try(began, within_s)
        except Conflict:
            self._seen = None  # whoever it was is seen at the next attempt
            if self.leads:
                await self._look(within_s)
        except Denied:
            self._until = float("-inf")
        except Unavailable as error:
            log.debug("the Lease cannot be had now: %s", error)

    async def _try(self, began: float, within_s: float) -> None:
        try:
            lease = await self._read(within_s)
        except Missing:
            lease = await self._create(within_s)
        else:
            self._notice(lease)
            if not self._may_take(lease):
                self._until = float("-inf")
                return
            lease = await self._replace(lease, within_s)
        self._notice(lease)
        self._until = began + self._renewed_s

    async def _look(self, within_s: float) -> None:
        """Whether it is somebody else's now."""
        try:
            lease = await self._read(within_s)
        except Unavailable:
            return
        self._notice(lease)
        if self.holder != self.identity:
            self._until = float("-inf")

    def _notice(self, lease: V1Lease) -> None:
        self.holder = lease.spec.holder_identity or ""
        if self._seen is None or (
            lease.metadata.resource_version != self._seen.metadata.resource_version
        ):
            self._seen, self._seen_at = lease, self._clock.now()

    def _may_take(self, lease: V1Lease) -> bool:
        if self.holder in ("", self.identity):
            return True
        lasts = float(lease.spec.lease_duration_seconds or self._lease_s)
        return self._clock.now() - self._seen_at >= lasts

    async def _read(self, within_s: float) -> V1Lease:
        read = self._api.coordination.read_namespaced_lease
        return await self._api.call(
            "get leases", read, self._name, self._api.namespace, within_s=within_s
        )

    async def _create(self, within_s: float) -> V1Lease:
        make = self._api.coordination.create_namespaced_lease
        lease = V1Lease(metadata=V1ObjectMeta(name=self._name), spec=self._spec(None))
        return await self._api.call(
            "create leases", make, self._api.namespace, lease, within_s=within_s
        )

    async def _replace(self, lease: V1Lease, within_s: float) -> V1Lease:
        lease = lease.model_copy(update={"spec": self._spec(lease.spec)})
        return await self._write(lease, within_s)

    async def _write(self, lease: V1Lease, within_s: float) -> V1Lease:
        """Raises Conflict where it is not what was read any more."""
        write = self._api.coordination.replace_namespaced_lease
        return await self._api.call(
            "update leases", write, self._name, self._api.namespace, lease, within_s=within_s
        )

    def _spec(self, old: V1LeaseSpec | None) -> V1LeaseSpec:
        now = datetime.fromtimestamp(unix_time(), UTC)
        now = now.replace(microsecond=max(1, now.microsecond))  # the server wants a fraction
        ours = old is not None and old.holder_identity == self.identity
        changes = (old.lease_transitions or 0) if old is not None else -1
        return V1LeaseSpec(
            holder_identity=self.identity,
            lease_duration_seconds=max(1, round(self._lease_s)),
            acquire_time=old.acquire_time if ours and old is not None else now,
            renew_time=now,
            lease_transitions=changes if ours else changes + 1,
        )

    async def _release(self) -> None:
        """So that another need not wait for its end."""
        was, self._until = self.leads, float("-inf")
        self._measures.leads.set(0)
        if not was or self._seen is None:
            return
        spec = self._seen.spec.model_copy(update={"holder_identity": ""})
        try:
            await self._write(self._seen.model_copy(update={"spec": spec}), self._every_s)
        except (Conflict, Unavailable):
            return  # then it expires
        log.info("%s gives the Lease %s back", self.identity, self._name)


async def _run(lead: Callable[[], Awaitable[None]]) -> None:
    await lead()
