"""Brings one pool, a Deployment, to the size that is wanted, step by step.

 grow    the Deployment gets its new size
 shrink  those who go are chosen and noted (deletion cost), drained, and then the Deployment gets
         its new size: its controller deletes those of the lowest cost, and those not ready

What stands in the cluster says where we are, so whoever leads next goes on from there: a pod that
was noted is drained, of no more use, and goes before the pool may grow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from cluster.backends.kubernetes.api import Api, Conflict, Missing
from cluster.backends.kubernetes.events import Events
from cluster.backends.kubernetes.measures import Measures
from cluster.backends.kubernetes.pods import COST, LEAVING, LOWEST_COST, Pod, active, who_goes
from cluster.config import PoolConfig
from workers.core.errors import Unavailable

log = logging.getLogger("kvasir.kubernetes")

LOAD_LATE_S = 3.0


class Workers(Protocol):
    """How pods of workers are asked: see cluster/worker_calls.py."""

    async def busy(self, address: str) -> int: ...

    async def drain(self, address: str, budget_s: float) -> int: ...


class PoolSize:
    """`may_write`: whether we lead, looked at before each write."""

    def __init__(
        self,
        api: Api,
        pool: PoolConfig,
        deployment: str,
        port: int,
        drain_s: float,
        workers: Workers,
        may_write: Callable[[], bool],
        events: Events,
        measures: Measures,
    ) -> None:
        self.pool = pool
        self.deployment = deployment
        self._api = api
        self._port = port
        self._drain_s = drain_s
        self._workers = workers
        self._may_write = may_write
        self._events = events
        self._measures = measures
        self._out_of_bounds: int | None = None  # that was said
        self._noted: set[str] = set()

    async def step(self, wanted: int | None, pods: Iterable[Any], deployment: Any) -> None:
        """One step nearer to `wanted` replicas (None: as many as there are). `pods`, V1Pods, and
        the V1Deployment are what is known of them. Raises Conflict and Unavailable."""
        if deployment is None:
            raise Missing(f"there is no Deployment {self.deployment} of workers")
        there = self._active(pods, deployment.spec.selector.match_labels)
        leaving = [pod for pod in there if pod.leaving]
        scale = await self._scale()
        size = scale.spec.replicas or 0
        wanted = size if wanted is None else self._bounded(wanted)
        going = max(len(leaving), len(there) - wanted)
        target = self._bounded(min(size, len(there) - going), say=False)
        behind = bool(leaving) and len(there) > size  # the controller, with deleting them
        if going > 0 and target < size:
            if rolling_out(deployment) and not leaving:
                log.info("%s: is rolled out, and shrinks after that", self.deployment)
                return
            going_pods = await self._chosen(there, going)
            await self._write(scale, target, dry_run="All")  # nobody drains for what is refused
            await self._let_go(going_pods)
            await self._set(scale, target)
        elif wanted < size or (wanted > size and not behind):
            await self._set(scale, wanted)

    def _active(self, pods: Iterable[Any], labels: Mapping[str, str]) -> list[Pod]:
        """Those that we noted are leaving too: the mirror may not know it yet."""
        there = active(pods, labels)
        self._noted &= {pod.name for pod in there}
        return [replace(pod, leaving=pod.leaving or pod.name in self._noted) for pod in there]

    def _bounded(self, wanted: int, *, say: bool = True) -> int:
        bounded = max(self.pool.least, min(self.pool.most, wanted))
        if say and bounded != wanted and self._out_of_bounds != wanted:
            self._out_of_bounds = wanted
            log.warning(
                "%s: %d replicas are wanted, but its bounds are %d to %d",
                *(self.pool.name, wanted, self.pool.least, self.pool.most),
            )
        return bounded

    async def _chosen(self, pods: Sequence[Pod], count: int) -> list[Pod]:
        """The least loaded of those who serve are found out by asking them."""
        serving = [pod for pod in pods if pod.ready and pod.ip is not None]
        answers = await asyncio.gather(*map(self._busy, serving))
        loads: Mapping[str, float] = {
            pod.name: load for pod, load in zip(serving, answers, strict=True)
        }
        return who_goes(pods, loads, count)

    async def _busy(self, pod: Pod) -> float:
        try:
            async with asyncio.timeout(LOAD_LATE_S):
                return await self._workers.busy(self._address(pod))
        except (Unavailable, TimeoutError):
            return 0.0  # nobody is served there

    async def _let_go(self, pods: Sequence[Pod]) -> None:
        """Noted first, so that nobody forgets that they are drained."""
        for pod in pods:
            if not pod.leaving:
                await self._note(pod)
        serving = [pod for pod in pods if pod.ip is not None]
        log.info("%s: %s drain", self.deployment, ", ".join(pod.name for pod in pods))
        await asyncio.gather(*map(self._drained, serving))

    async def _note(self, pod: Pod) -> None:
        self._check()
        self._noted.add(pod.name)
        notes = {COST: str(LOWEST_COST), LEAVING: "true"}
        try:
            await self._api.call(
                "patch pods",
                self._api.core.patch_namespaced_pod,
                pod.name,
                self._api.namespace,
                {"metadata": {"annotations": notes}},
            )
        except Missing:
            raise Conflict(f"{pod.name} is gone already") from None

    async def _drained(self, pod: Pod) -> None:
        try:
            left = await self._workers.drain(self._address(pod), self._drain_s)
        except Unavailable as error:
            log.info("%s is deleted without having been drained by us: %s", pod.name, error)
            return
        if left:
            log.warning(
                "%s still has %d requests or tickets; it has its grace for them", pod.name, left
            )

    async def _scale(self) -> Any:
        read = self._api.apps.read_namespaced_deployment_scale
        return await self._api.call(
            "get deployments/scale", read, self.deployment, self._api.namespace
        )

    async def _set(self, scale: Any, replicas: int) -> None:
        was = scale.spec.replicas or 0
        await self._write(scale, replicas)
        log.info("%s: %d replicas, was %d", self.deployment, replicas, was)
        direction = "up" if replicas > was else "down"
        self._measures.scaled.labels(self.pool.name, direction).inc()
        await self._events.scaled(self.deployment, scale.metadata.uid, was, replicas)

    async def _write(self, scale: Any, replicas: int, dry_run: str | None = None) -> None:
        """Raises Conflict where the Deployment has changed since `scale` was read."""
        assert self.pool.least <= replicas <= self.pool.most, "bounds hold whatever is wanted"
        self._check()
        await self._api.call(
            "update deployments/scale",
            self._api.apps.replace_namespaced_deployment_scale,
            self.deployment,
            self._api.namespace,
            scale.model_copy(update={"spec": scale.spec.model_copy(update={"replicas": replicas})}),
            dry_run=dry_run,
        )

    def _check(self) -> None:
        if not self._may_write():
            raise Unavailable("we do not lead any more")

    def _address(self, pod: Pod) -> str:
        host = f"[{pod.ip}]" if pod.ip is not None and ":" in pod.ip else pod.ip
        return f"{host}:{self._port}"


def rolling_out(deployment: Any) -> bool:
    """Whether pods of an older version are still there, or may be: the controller has not seen yet
    what is wanted. Then which go is not ours to say."""
    status = deployment.status
    if status is None:
        return False
    if (status.observed_generation or 0) < (deployment.metadata.generation or 0):
        return True
    return (status.updated_replicas or 0) < (status.replicas or 0)
