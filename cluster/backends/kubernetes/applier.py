"""The planner's hand on Kubernetes, in static mode: Deployments `<release>-<pool>` follow the plan.

Any number of planners may run; the one that holds the Lease `<release>-planner` applies.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import socket
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from cluster.backends.kubernetes.api import Api, Conflict, Denied, Make, connected
from cluster.backends.kubernetes.events import Events
from cluster.backends.kubernetes.lease import Election
from cluster.backends.kubernetes.measures import Measures
from cluster.backends.kubernetes.mirror import Mirror
from cluster.backends.kubernetes.pool_size import PoolSize, Workers
from cluster.config import ClusterConfig
from cluster.worker_calls import WorkerCalls
from workers.core.clock import Clock, SystemClock
from workers.core.errors import ConfigError, Unavailable
from workers.core.waits import happens
from workers.wire.tls import client_tls

if TYPE_CHECKING:
    from cluster.autoscaler.published import Published

log = logging.getLogger("kvasir.kubernetes")

LOOK_S = 30.0  # at a pool of which nothing is heard
SETTLE_S = 0.2  # for what else happens at the same time
DENIED_S = 60.0
WORKERS = "app.kubernetes.io/name=kvasir,app.kubernetes.io/component=worker"


@dataclass(frozen=True, slots=True)
class Target:
    """A release of the chart."""

    namespace: str
    release: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """Of `namespace/release`. Raises ConfigError."""
        namespace, slash, release = text.partition("/")
        if not namespace or not slash or not release or "/" in release:
            raise ConfigError(f"expected NAMESPACE/RELEASE, found {text!r}")
        return cls(namespace, release)

    def deployment(self, pool: str) -> str:
        return f"{self.release}-{pool}"

    @property
    def lease(self) -> str:
        return f"{self.release}-planner"


class KubernetesApplier:
    """`identity`: this pod's name, in the Lease."""

    def __init__(
        self,
        config: ClusterConfig,
        target: Target,
        registry: CollectorRegistry,
        *,
        identity: str | None = None,
        kubeconfig: Path | None = None,
        workers: Workers | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        lease_s: float = 15.0,
        denied_s: float = DENIED_S,
    ) -> None:
        """Of `lease_s` it leads for two thirds after each renewal, and renews it every seventh."""
        self.measures = Measures(registry)
        self._config = config
        self._target = target
        self._identity = identity or socket.gethostname()
        self._kubeconfig = kubeconfig
        self._workers = workers or WorkerCalls(client_tls(config.internal_tls))
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()
        self._lease_s = lease_s
        self._denied_s = denied_s
        self._wanted: dict[str, int] = {}
        self._ordered = asyncio.Event()  # something is wanted
        self._why: tuple[str, ...] = ()
        self._trouble: dict[str, str] = {}  # by pool
        self._told = ""  # of it
        self._news = {pool.name: asyncio.Event() for pool in config.pools}
        self._election: Election | None = None

    @property
    def leads(self) -> bool:
        return self._election is not None and self._election.leads

    async def apply(self, plan: Published) -> None:
        """Says what is wanted; run() brings it about while we lead. Raises Unavailable, once for
        each reason, where it could not of late."""
        self._wanted = dict(plan.pools)
        if self._wanted:
            self._ordered.set()
        self._why = tuple(map(str, plan.plan.get("reasons", ())))
        self._wake()
        text = "; ".join(self._trouble.values()) if self.leads else ""
        told, self._told = self._told, text
        if text and text != told:
            raise Unavailable(text)

    async def run(self) -> None:
        """Stands for election, and applies while elected. Until cancelled; then the Lease is given
        back. Raises ConfigError where there is no way to the API."""
        async with connected(
            self._target.namespace, self._kubeconfig, self.measures, self._clock, self._rng
        ) as api:
            self._election = Election(
                api,
                self._target.lease,
                self._identity,
                self.measures,
                self._clock,
                lease_s=self._lease_s,
                renewed_s=self._lease_s * 2 / 3,
                every_s=self._lease_s / 7.5,
            )
            await self._election.run(functools.partial(self._lead, api))

    async def _lead(self, api: Api) -> None:
        self._trouble = {}
        await self._ordered.wait()  # who only advises needs no rights to what follows
        events = Events(api, self._target.lease)
        follow = functools.partial(self._mirror, api)
        pods = follow("pods", api.core.list_namespaced_pod)
        deployments = follow("deployments", api.apps.list_namespaced_deployment)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pods.run())
            tasks.create_task(deployments.run())
            for size in self._sizes(api, events):
                tasks.create_task(self._follow(size, pods, deployments, events))

    def _mirror(self, api: Api, resource: str, make: Make[Any]) -> Mirror:
        return Mirror(api, resource, make, WORKERS, self._wake, self.measures, self._rng)

    def _sizes(self, api: Api, events: Events) -> Sequence[PoolSize]:
        """Of pools whose size may change."""
        return [
            PoolSize(
                api,
                pool,
                self._target.deployment(pool.name),
                self._config.ports.worker,
                self._config.grace_s,
                self._workers,
                lambda: self.leads,
                events,
                self.measures,
            )
            for pool in self._config.pools
            if pool.least < pool.most
        ]

    async def _follow(
        self, size: PoolSize, pods: Mirror, deployments: Mirror, events: Events
    ) -> None:
        """One pool, for as long as we lead."""
        name, news = size.pool.name, self._news[size.pool.name]
        await pods.listed.wait()
        await deployments.listed.wait()
        while True:
            news.clear()
            events.why = self._why
            known = deployments.objects.get(size.deployment)
            step = size.step(self._wanted.get(name), pods.objects.values(), known)
            pause = await self._tried(name, step)
            if pause:
                await asyncio.sleep(pause)
            else:
                await happens(news, within_s=LOOK_S)
                await asyncio.sleep(SETTLE_S)

    async def _tried(self, pool: str, step: Awaitable[None]) -> float:
        """Seconds until the next try; 0: once something happens."""
        try:
            await step
        except Conflict as error:
            log.info("%s: %s; looking again", pool, error)
            return SETTLE_S * self._rng.uniform(1.0, 2.0)
        except Denied as error:  # said where it happened
            self._trouble[pool] = error.message
            return self._denied_s
        except Unavailable as error:
            if self._trouble.get(pool) != error.message:
                log.warning("%s: %s", pool, error.message)
            self._trouble[pool] = error.message
            return SETTLE_S * self._rng.uniform(5.0, 10.0)
        self._trouble.pop(pool, None)
        return 0.0

    def _wake(self) -> None:
        for news in self._news.values():
            news.set()
