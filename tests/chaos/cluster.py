"""A whole cluster in virtual time: real workers, registry and router, each on a host of its own.

What a process does at start and end stands here once more, shorter (workers/launch.py,
router/app.py): everything else is the real thing.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Any

from router.config import Limits
from router.dispatch import Dispatcher
from router.index.expecting import ExpectingIndex
from router.index.redis_log import RedisLog
from router.index.redis_reader import RedisReader
from router.latency import FittedLatency
from router.metrics import RouterMetrics
from router.placement.placement import Placement
from router.placement.policies.names import make_policy
from router.pool import Pool
from router.rebalance import rebalance
from router.registry_reader import RegistryReader
from router.worker_client import WorkerClient
from tests.chaos.fabric import Fabric, SimTransport
from tests.chaos.hosts import Host
from tests.chaos.network import Network
from tests.chaos.plan import Plan
from tests.chaos.redis_twin import SimRedis, Store
from tests.chaos.rpc import SimChannel
from tests.chaos.runner import BLOCK, CONTEXT, ChaosRunner
from tests.router.fleet import SHAPE
from tests.sim.house import SlowThreads
from workers.config import TransportConfig
from workers.core.clock import VirtualClock
from workers.core.roles import RoleName
from workers.core.span import whole
from workers.engine import Engine
from workers.peer_client import GrpcPeers
from workers.prewarm import Prewarmer
from workers.registry import Registry
from workers.server import WorkerServicer
from workers.transfer.port import LocalPort, Ports
from workers.wire import common_pb2 as common
from workers.wire.codec import role_to_wire
from workers.wire.redis_keys import ReplicaRecord
from workers.worker import Worker

NAME = "chaos"
TTL_S = 6.0
ROLES: dict[str, RoleName] = {"p": "prefill", "d": "decode", "a": "aggregated"}
LAST_WORDS_S = 0.1
CHUNK_S = 2.0
GRACE_S = 3.0  # of a worker that was told to leave
LIMITS = Limits(retry_attempts=200, retry_s=120.0, worker_wait_s=120.0, worker_silence_s=1.5)


class WorkerProcess:
    """One life of one worker. `leave` tells it to drain and end."""

    def __init__(self, cluster: Cluster, name: str, life: int) -> None:
        self.host = Host(name, life)
        self.leave = asyncio.Event()
        self._cluster = cluster
        self.runner = ChaosRunner(
            cluster.plan.blocks, lambda what: cluster.crashes.append(f"{self.host}: {what}")
        )
        self.worker: Worker | None = None  # until it has started
        self.task = self.host.spawn(self._run(), f"{self.host} main")

    @property
    def role(self) -> RoleName:
        return ROLES[self.host.name[0]]

    async def _run(self) -> None:
        network, plan = self._cluster.network, self._cluster.plan
        peers = GrpcPeers(VirtualClock(), self._channel)
        made = self.worker = self._worker(peers)
        registry = Registry(None, NAME, self._record(made), made.events)
        registry._redis = self._cluster.redis(self.host)
        prewarmer = Prewarmer(
            registry,
            made.receiver_pairs,
            made.me,
            made.engine.info.kv_abi,
            most=plan.prewarm,
            fetches=lambda: self.role == "decode",
            gone=peers.gone,
        )
        made.ready = False
        network.listen(self.host, WorkerServicer(made))
        running = [
            asyncio.create_task(made.run(), name=f"{self.host} engine"),
            asyncio.create_task(peers.tend(), name=f"{self.host} peers"),
            asyncio.create_task(_be_there(made, registry, prewarmer), name=f"{self.host} there"),
        ]
        leave = asyncio.ensure_future(self.leave.wait())
        await asyncio.wait([leave, *running], return_when=asyncio.FIRST_COMPLETED)
        if self.leave.is_set():
            running.append(asyncio.create_task(made.drain(GRACE_S), name=f"{self.host} drain"))
            await asyncio.wait([running[-1]])
            made.end()
        made.leaving.set()
        for task in (*running, leave):
            task.cancel()
        await asyncio.wait([*running, leave])
        for task in running:
            if not task.cancelled():
                task.result()
        await registry.leave()
        network.close(self.host)
        await asyncio.sleep(LAST_WORDS_S)
        await network.cancel_served(self.host)
        await peers.close()
        await made.close()

    def _channel(self, address: str) -> Any:
        return SimChannel(self._cluster.network, self.host, address)

    def _worker(self, peers: GrpcPeers) -> Worker:
        plan, offload = self._cluster.plan, SlowThreads()
        engine = Engine(
            self.runner,
            block_size=BLOCK,
            step_tokens=16,
            max_seqs=8,
            clock=VirtualClock(),
            overlap=plan.overlap,
        )
        pages = self.runner.pages
        pages.pool = engine.pool.shards[0]
        transports = [SimTransport(self._cluster.fabric)] if plan.transport else []
        port = LocalPort(pages, whole(1), transports, offload)
        return Worker(
            engine,
            common.ReplicaRef(
                id=self.host.name, incarnation=f"{self.host}", address=self.host.name
            ),
            role_to_wire(self.role),
            peer_at=peers.at,
            ports=Ports(((port,),), 1, pages.block_bytes),
            transports=transports,
            config=TransportConfig(
                staging_bytes=plan.slots * plan.slot_blocks * pages.block_bytes,
                slots=plan.slots,
                inline_bytes=pages.block_bytes,  # one block is small, two are not
                checksums=True,
                chunk_timeout_s=CHUNK_S,
                connect_timeout_s=CHUNK_S,
            ),
            ttl_s=TTL_S,
            offload=offload,
        )

    def _record(self, made: Worker) -> ReplicaRecord:
        return ReplicaRecord(
            id=made.me.id,
            incarnation=made.me.incarnation,
            address=made.me.address,
            pool=self.role,
            role=self.role,
            model="sim",
            kv_abi=made.engine.info.kv_abi,
            block_size=BLOCK,
            context_length=CONTEXT,
            kv_tokens=made.engine.pool.num_blocks * BLOCK,
        )


async def _be_there(made: Worker, registry: Registry, prewarmer: Prewarmer) -> None:
    await prewarmer.look()
    made.ready = True
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(registry.run())
        tasks.create_task(prewarmer.run())


class RouterProcess:
    """`up` is set once it takes requests."""

    def __init__(self, cluster: Cluster) -> None:
        self.host = Host("router")
        self.up = asyncio.Event()
        self.leave = asyncio.Event()
        self._cluster = cluster
        self.task = self.host.spawn(self._run(), "router main")

    async def _run(self) -> None:
        cluster = self._cluster
        clock = VirtualClock()
        self.metrics = RouterMetrics()
        latency = SimLatency(SHAPE)
        latency.seconds_per_byte = 1e-3 if cluster.plan.early else 0.0
        client = cluster.redis(self.host)
        self.index = ExpectingIndex(clock)
        self.events = RedisLog(RedisReader(client, NAME), self.index, clock)
        reader = RegistryReader(client, "redis://sim", NAME)

        def client_of(replica: str, address: str) -> WorkerClient:
            channel: Any = SimChannel(cluster.network, self.host, address)
            return WorkerClient(replica, address, channel)

        async with AsyncExitStack() as parts:
            self.pool = await parts.enter_async_context(
                Pool(LIMITS.worker_silence_s, [self.metrics, self.events], client_of=client_of)
            )
            rng = random.Random(cluster.plan.seed)
            placement = Placement(latency, rng, make_policy("kvasir", rng, clock))
            self.dispatcher = await parts.enter_async_context(
                Dispatcher(self.pool, placement, self.index, latency, LIMITS, clock, self.metrics)
            )
            running = [
                asyncio.create_task(self.events.run(), name="event log"),
                asyncio.create_task(
                    reader.run(self.pool.sync, self.pool.redis_lost), name="registry"
                ),
                asyncio.create_task(
                    rebalance(self.pool, self.dispatcher, every_s=0.3), name="rebalance"
                ),
            ]
            self.up.set()
            leave = asyncio.ensure_future(self.leave.wait())
            await asyncio.wait([leave, *running], return_when=asyncio.FIRST_COMPLETED)
            for task in running:
                if task.done():
                    task.result()
                task.cancel()
            await asyncio.wait(running)


class SimLatency(FittedLatency):
    """Prompts take as long as ChaosRunner computes them; whether transfers are thought to be worth
    hiding, the plan says."""

    seconds_per_byte = 0.0

    def prefill_s(self, replica: str, new_tokens: int, context_tokens: int) -> float:
        return 0.002 * new_tokens

    def transfer_s(self, num_bytes: int, sender: str, receiver: str) -> float:
        return num_bytes * self.seconds_per_byte


class Cluster:
    """`workers` by name: the life that runs now, if one does."""

    def __init__(self, plan: Plan, network: Network, fabric: Fabric) -> None:
        self.plan = plan
        self.network = network
        self.fabric = fabric
        self.store = Store()
        self.workers: dict[str, WorkerProcess] = {}
        self.dead: list[WorkerProcess] = []
        self.crashes: list[str] = []
        self._lives: dict[str, int] = {}
        self.router: RouterProcess  # once it is started

    async def open(self) -> None:
        """All workers, then the router: when it looks they are there."""
        for name in self.plan.workers:
            self.start(name)
        await asyncio.sleep(0.1)
        self.router = RouterProcess(self)
        await self.router.up.wait()
        while sum(replica.up for replica in self.router.pool) < len(self.plan.workers):
            now = asyncio.get_running_loop().time()
            assert now < 30 and not self.crashes, self.crashes
            await asyncio.sleep(0.05)

    def redis(self, host: Host) -> SimRedis:
        return SimRedis(self.network, host, self.store)

    def start(self, name: str) -> WorkerProcess:
        life = self._lives[name] = self._lives.get(name, 0) + 1
        made = self.workers[name] = WorkerProcess(self, name, life)
        made.task.add_done_callback(lambda task: self._ended(made, task))
        return made

    def kill(self, name: str) -> bool:
        made = self.workers.get(name)
        if made is None or made.host.dead:
            return False
        made.host.kill()
        self.network.died(made.host)
        self.fabric.died(made.host)
        del self.workers[name]
        self.dead.append(made)
        return True

    def _ended(self, made: WorkerProcess, task: asyncio.Task[None]) -> None:
        if self.workers.get(made.host.name) is made:
            del self.workers[made.host.name]
        self.network.died(made.host)
        self.fabric.died(made.host)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.crashes.append(f"{made.host}: {error!r}")
