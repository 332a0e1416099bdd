"""Parts of a live planner for tests: replicas that only have a state, routers that say what a test
wants, and a planner over them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from cluster.autoscaler.loop import Autoscaler
from cluster.autoscaler.metrics import PlannerMetrics
from cluster.autoscaler.offered import Offered
from cluster.autoscaler.published import Mode
from cluster.autoscaler.routers import There
from cluster.autoscaler.sight import Sight
from cluster.autoscaler.store import Store
from cluster.autoscaler.watched import Watched
from cluster.planner.options import Options
from cluster.planner.planner import Planner
from cluster.planner.signals import PoolRole, PoolSpec
from router.latency import FittedLatency, HardwareClass
from router.replica import Replica, ReplicaState
from tests.cluster.planner_scene import CHAT
from workers.core.clock import SystemClock
from workers.core.errors import Unavailable
from workers.core.roles import RoleName
from workers.core.waits import let_go
from workers.models.config import read_shape
from workers.wire import admin_pb2 as admin
from workers.wire import worker_pb2 as worker
from workers.wire.redis_client import connect_redis
from workers.wire.redis_keys import ReplicaRecord

H100 = HardwareClass("h100")
CLUSTER = "auto"


class Replicas:
    """As far as a planner looks at a router.pool.Pool."""

    def __init__(self) -> None:
        self._all: dict[str, Replica] = {}

    def __iter__(self) -> Iterator[Replica]:
        return iter(list(self._all.values()))

    def get(self, name: str) -> Replica | None:
        return self._all.get(name)

    def come(self, name: str, role: RoleName | None = None, *, busy: int = 0) -> Replica:
        """Up; `name` is `<pool>-<something>`."""
        pool = name.partition("-")[0]
        record = ReplicaRecord(
            id=name, incarnation="1", address="", pool=pool, role=role or pool, model="",
            kv_abi="abi", block_size=16, context_length=8192, kv_tokens=400_000, hardware="h100",
        )  # fmt: skip
        made = self._all[name] = Replica(record, None)  # type: ignore[arg-type]
        made.load = worker.LoadReport(running=busy)
        made.move(ReplicaState.UP, "test")
        return made

    def go(self, name: str) -> None:
        del self._all[name]


def spec(role: PoolRole, least: int = 1, most: int = 20) -> PoolSpec:
    return PoolSpec(role, role, role, least, most, cold_start_s=60.0, kv_tokens=400_000)


def watched(*specs: PoolSpec, latency: FittedLatency | None = None) -> Watched:
    given = specs or (spec("prefill"), spec("decode"))
    return Watched(
        given,
        {each.name: "prefill" if each.role == "prefill" else "decode" for each in given},
        {each.name: H100 for each in given},
        2048,
        latency or FittedLatency(read_shape("llama-8b"), H100),
    )


class SaidRouters:
    """`whole` False: one of them is not heard."""

    def __init__(self, offered: Offered) -> None:
        self.whole = True
        self.rate = 0  # requests, before each look
        self.in_flight = 0
        self.roles: list[tuple[str, RoleName]] = []
        self._offered = offered

    async def run(self) -> None:
        await asyncio.Event().wait()

    def heard_since(self, began: float) -> bool:
        if self.whole:
            self._offered.note(asked(self.rate))
        return self.whole

    async def there(self) -> There:
        if not self.whole:
            raise Unavailable("no router")
        return There(Counter(), self.in_flight)

    async def set_role(self, replica: str, role: RoleName) -> None:
        self.roles.append((replica, role))


def asked(count: int, prompt: int = 4000, output: int = 300) -> admin.RecordedBatch:
    return admin.RecordedBatch(
        arrivals=[admin.RecordedArrival(slo_class="chat", prompt_tokens=prompt)] * count,
        requests=[
            admin.RecordedRequest(
                slo_class="chat", prompt_tokens=prompt, output_tokens=output, ttft_s=0.1,
                let_in=True, outcome="ok",
            )
        ] * count,
    )  # fmt: skip


class Running:
    """One planner that runs, and what it stands on."""

    def __init__(self, url: str, me: str, mode: Mode, **options: object) -> None:
        self.client = connect_redis(url)
        self.replicas = Replicas()
        for name in ("prefill-0", "decode-0"):
            self.replicas.come(name)
        self.offered = Offered(CHAT.classes)
        self.routers = SaidRouters(self.offered)
        self.store = Store(self.client, CLUSTER, me)
        self.metrics = PlannerMetrics()
        self.applied: list[dict[str, int]] = []
        latency = FittedLatency(read_shape("llama-8b"), H100)
        specs = [spec("prefill"), spec("decode")]
        self.watched = watched(*specs, latency=latency)
        planner = Planner(specs, CHAT, latency, Options(**{"season_s": None} | options))  # type: ignore[arg-type]
        sight = Sight(self.watched, self.replicas, self.offered, self.routers)  # type: ignore[arg-type]
        self.loop = Autoscaler(
            planner, sight, self.store, self.metrics, SystemClock(), self,  # type: ignore[arg-type]
            mode=mode, every_s=0.1, first={"prefill": 1, "decode": 1},
        )  # fmt: skip

    # as an Applier

    async def apply(self, plan: object) -> None:
        self.applied.append(dict(plan.pools))  # type: ignore[attr-defined]

    async def run(self) -> None:
        await asyncio.Event().wait()


@asynccontextmanager
async def running(
    url: str, me: str, mode: Mode = "apply", **options: object
) -> AsyncIterator[Running]:
    """Looks many times a second (patch LOOK_S), plans every 0.1 s."""
    made = Running(url, me, mode, **options)
    task = asyncio.create_task(made.loop.run())
    try:
        yield made
        assert not task.done(), task
    finally:
        await let_go(task)
        await made.client.aclose()
