"""Planners of a small cluster, in front of the stand-in: what they want is said by the test."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from prometheus_client import CollectorRegistry

from cluster.autoscaler.published import Published
from cluster.backends.kubernetes.applier import KubernetesApplier, Target
from cluster.config import ClusterConfig
from tests.k8s.stand_in import NAMESPACE, RELEASE, StandIn, kubeconfig
from workers.core.errors import Unavailable
from workers.core.waits import let_go

PATIENCE_S = 30.0
CONFIG = ClusterConfig.model_validate(
    {
        "model": "demo",
        "redis": "redis://nowhere:6379/0",
        "grace_s": 5.0,
        "pools": [
            {"name": "prefill", "role": "prefill", "replicas": 2, "min": 1, "max": 4},
            {"name": "decode", "role": "decode", "replicas": 3, "min": 1, "max": 8},
        ],
    }
)


class FakeWorkers:
    """Pods that answer, by their address. Draining makes a pod not ready, as the probe would."""

    def __init__(self, server: StandIn) -> None:
        self.loads: dict[str, int] = {}  # by pod
        self.drained: list[str] = []
        self.sizes: list[int] = []  # of their pools, when they began to
        self.drains = asyncio.Event()  # unset: a drain does not end
        self.drains.set()
        self._server = server

    async def busy(self, address: str) -> int:
        return self.loads.get(self._pod(address), 0)

    async def drain(self, address: str, budget_s: float) -> int:
        pod = self._pod(address)
        self.drained.append(pod)
        self.sizes.append(self._server.size(pod.split("-")[1]))
        self._server.set_ready(pod, False)
        await self.drains.wait()
        return 0

    def _pod(self, address: str) -> str:
        host, _, port = address.rpartition(":")
        assert int(port) == CONFIG.ports.worker
        (name,) = [pod for pod in self._server.objects["pods"] if self._server.ip(pod) == host]
        return name


class Planner:
    """One that runs; `applier` is what is under test."""

    def __init__(self, applier: KubernetesApplier, running: asyncio.Task[None]) -> None:
        self.applier = applier
        self.running = running

    async def want(self, sizes: Mapping[str, int], *reasons: str) -> None:
        plan = Published(at=0.0, mode="apply", pools=sizes, plan={"reasons": reasons})
        await self.applier.apply(plan)

    async def die(self) -> None:
        """Without a word: the Lease stays as it is."""
        assert self.applier._election is not None
        self.applier._election._release = _nothing  # type: ignore[method-assign]
        await let_go(self.running)


async def _nothing() -> None:
    pass


@asynccontextmanager
async def planner(
    server: StandIn,
    folder: Path,
    who: str,
    workers: FakeWorkers | None = None,
    lease_s: float = 6.0,
) -> AsyncIterator[Planner]:
    applier = KubernetesApplier(
        CONFIG,
        Target(NAMESPACE, RELEASE),
        CollectorRegistry(),
        identity=who,
        kubeconfig=kubeconfig(folder, server, who),
        workers=workers or FakeWorkers(server),
        rng=random.Random(7),
        lease_s=lease_s,
        denied_s=0.3,
    )
    running = asyncio.ensure_future(applier.run())
    try:
        yield Planner(applier, running)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def until(holds: Callable[[], object], what: str = "") -> None:
    """Until it is so; fails where it does not come to be."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(what or "it never came to be so") from None


async def elected(one: Planner) -> None:
    await until(lambda: one.applier.leads or one.running.done(), "nobody was elected")
    assert not one.running.done(), one.running.exception()


async def refusal(one: Planner, sizes: Mapping[str, int]) -> str:
    """Why they cannot be had, once that is known."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await one.want(sizes)
            except Unavailable as error:
                return error.message
            await asyncio.sleep(0.05)
