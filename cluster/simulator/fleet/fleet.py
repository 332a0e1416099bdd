"""A cluster in virtual time: the router's own parts over simulated workers.

What router/app.py composes stands here once more, without doors and without Redis: the registry is
a list, and what a worker's cache says reaches the index at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import cast

from cluster.simulator.fleet.asks import Ask, AskedIds
from cluster.simulator.fleet.client import SimWorkerClient
from cluster.simulator.fleet.cores import SharedCores
from cluster.simulator.fleet.desk import SimDesk
from cluster.simulator.fleet.plan import FleetPlan, Outcome, PoolTotals, ReplicaPlan
from cluster.simulator.fleet.record import Journal
from cluster.simulator.fleet.stream import Tokens
from cluster.simulator.fleet.worker import SimWorker
from cluster.simulator.fleet.world import KV_ABI, World
from router.dispatch import Dispatcher
from router.flow.book import Result, result_of
from router.flow.control import FlowControl, Wish
from router.flow.room import PoolRoom
from router.flow.tuning import EngineTuner
from router.flow.turn import Turn
from router.index.expecting import ExpectingIndex
from router.latency.feed import LatencyFeed
from router.metrics import RouterMetrics
from router.placement.placement import Placement
from router.placement.policies.names import make_policy
from router.pool import Pool
from router.replica import Replica
from router.worker_client import WorkerClient, WorkerFailed
from workers.core.clock import VirtualClock
from workers.core.errors import KvasirError, Overloaded
from workers.core.events import KVEvent
from workers.core.request import Request
from workers.core.roles import RoleName
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.redis_keys import ReplicaRecord

START_S = 60.0  # at most, until all replicas are up
REGISTRY_S = 1.0  # until the router looks who is still there


class _IndexFeed:
    """What died caches nothing."""

    def __init__(self, index: ExpectingIndex) -> None:
        self._index = index

    def reported(self, replica: Replica, load: worker.LoadReport) -> None: ...

    def lost(self, replica: Replica) -> None:
        self._index.clear(replica.id)

    def forgotten(self, replica: Replica) -> None:
        self._index.clear(replica.id)


class Fleet:
    """`async with Fleet.open(plan)`. `workers` by name: the life that runs now, if one does.
    Replicas may come (add) and go (drain, remove) and change their roles while it is open."""

    def __init__(self, plan: FleetPlan) -> None:
        clock = VirtualClock()
        self.plan = plan
        self.workers: dict[str, SimWorker] = {}
        self.dead: list[SimWorker] = []
        self.journal = Journal()
        self.outcomes: list[Outcome] = []
        self.metrics = RouterMetrics()
        self.index = ExpectingIndex(clock, plan.limits.index_blocks)
        self._plans = {replica.name: replica for replica in plan.replicas}
        self._leased = dict.fromkeys(self._plans)  # those that the registry knows
        self._lives: dict[str, int] = {}
        self._asks: dict[str, Ask] = {}
        self._clock = clock
        self._world = World(
            plan.truth, plan.ticket_ttl_s, plan.noise, plan.seed,
            ask_of=self._asks.__getitem__,
            line_of=self.journal.lines.__getitem__,
            events=self._heard,
            tokens=Tokens(),
            desk_of=self._desk_of,
            cores=SharedCores(plan.contention) if plan.contention is not None else None,
        )  # fmt: skip
        rng = random.Random(plan.seed)
        self.pool = Pool(
            plan.limits.worker_silence_s,
            [LatencyFeed(plan.believed), _IndexFeed(self.index)],
            client_of=self._client_of,
        )
        placement = Placement(
            plan.believed,
            rng,
            make_policy(plan.policy, rng, clock),
            disaggregation=plan.disaggregation,
            clock=clock,
        )
        self.dispatcher = Dispatcher(
            self.pool, placement, self.index, plan.believed, plan.limits, clock, self.metrics
        )
        room = PoolRoom(self.pool, plan.believed, placement)
        self.flow = FlowControl(plan.slo, room, clock, max_in_flight=plan.limits.max_requests)
        self.tuner = EngineTuner(self.pool, plan.believed, self.flow.itl_target_s)

    @classmethod
    @asynccontextmanager
    async def open(cls, plan: FleetPlan) -> AsyncIterator[Fleet]:
        """All replicas are up when the block begins, and dead when it is over."""
        fleet = cls(plan)
        for name in fleet._plans:
            fleet.start(name)
        async with fleet.pool as pool, fleet.dispatcher, asyncio.TaskGroup() as tasks:
            pool.sync(fleet._records())
            running = [tasks.create_task(fleet.flow.run()), tasks.create_task(fleet.tuner.run())]
            async with asyncio.timeout(START_S):
                while not all(replica.up for replica in pool):
                    await pool.wait_changed()
            try:
                yield fleet
            finally:
                for task in running:
                    task.cancel()

    # -- workers ---------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """A life of the replica begins: empty, and ready at once."""
        plan = self._plans[name]
        life = self._lives[name] = self._lives.get(name, 0) + 1
        self.plan.truth.placed(name, plan.sizes.hardware_class, plan.sizes.step_tokens)
        self.workers[name] = SimWorker(name, life, plan.role, plan.sizes, self._world)

    def add(self, plan: ReplicaPlan) -> None:
        """It is there from now on: up, and empty. Its name was nobody's before."""
        assert plan.name not in self._plans, plan.name
        self._plans[plan.name] = plan
        self._leased[plan.name] = None
        self.start(plan.name)
        self.pool.sync(self._records())

    def drain(self, name: str) -> None:
        """It takes nothing new and ends what it has; drained when its worker has no leftover()."""
        self.workers[name].drain()

    def remove(self, name: str) -> None:
        """It stops, and the registry forgets it."""
        self._leased.pop(name, None)
        self.kill(name)
        later = asyncio.get_running_loop().call_later
        later(REGISTRY_S, lambda: self.pool.sync(self._records()))

    def set_role(self, name: str, role: RoleName) -> None:
        """What comes from now on is of its new role; what runs there ends there."""
        self.workers[name].set_role(role)

    def kill(self, name: str) -> None:
        """No effect on one that is dead."""
        died = self.workers.pop(name, None)
        if died is not None:
            died.die("it died")
            self.dead.append(died)

    def _records(self) -> Iterable[ReplicaRecord]:
        for name in self._leased:
            plan = self._plans[name]
            sizes = plan.sizes
            yield ReplicaRecord(
                id=name,
                incarnation="1",
                address=name,
                pool=plan.pool,
                role=plan.role,
                model="simulated",
                kv_abi=KV_ABI,
                block_size=sizes.block_size,
                context_length=sizes.context_length,
                kv_tokens=sizes.kv_tokens,
                tensor_ranks=sizes.tensor_ranks,
                expert_ranks=sizes.expert_ranks,
                hardware=sizes.hardware,
            )

    def _client_of(self, replica: str, address: str) -> WorkerClient:
        client = SimWorkerClient(replica, lambda: self.workers.get(replica))
        return cast(WorkerClient, client)

    def _desk_of(self, sender: common.ReplicaRef) -> SimDesk:
        at = self.workers.get(sender.id)
        if at is None or at.me.incarnation != sender.incarnation:
            raise WorkerFailed(f"worker {sender.id} is not what it was")
        return at.desk

    def _heard(self, name: str, events: list[KVEvent]) -> None:
        replica = self.pool.get(name)
        if replica is not None and replica.alive:
            self.index.apply(name, events)

    # -- what it all came to ---------------------------------------------------------------------

    @property
    def pools(self) -> list[str]:
        return list(dict.fromkeys(replica.pool for replica in self._plans.values()))

    def pool_of(self, replica: str) -> str:
        return self._plans[replica].pool

    def busy_s(self, pool: str) -> float:
        """Seconds in steps of its replicas, all lives together."""
        lives = (*self.workers.values(), *self.dead)
        return sum(w.engine.busy_until_now() for w in lives if self.pool_of(w.name) == pool)

    def totals(self) -> dict[str, PoolTotals]:
        """By pool."""
        found = {pool: PoolTotals() for pool in self.pools}
        for name in self._leased:
            found[self.pool_of(name)].replicas += 1
        for life in (*self.workers.values(), *self.dead):
            life.engine.settle()
            totals, scheduler = found[self.pool_of(life.name)], life.engine.scheduler
            totals.up_s += (self._clock.now() if life.alive else life.died_at) - life.born_at
            totals.busy_s += life.engine.busy_until_now()
            totals.steps += life.engine.steps
            totals.preemptions += scheduler.preemptions
            totals.query_tokens += scheduler.query_tokens
            totals.hit_tokens += scheduler.hit_tokens
        return found

    def check_integrity(self) -> None:
        """Raise AssertionError unless pages, tickets and sums agree everywhere. Slow."""
        for at in self.workers.values():
            at.check_integrity()
        self.pool.check_integrity()

    def leftover(self) -> list[str]:
        """What is still held though no request is under way, in words."""
        found = []
        for at in self.workers.values():
            found += [f"{at.name}: {what}" for what in at.leftover()]
        for replica in self.pool:
            if replica.assignments.seqs:
                found.append(f"{replica.id}: {replica.assignments.seqs} assignments")
        if self.dispatcher.tickets_held:
            found.append(f"{self.dispatcher.tickets_held} tickets are renewed")
        return found

    # -- requests --------------------------------------------------------------------------------

    async def serve(self, ask: Ask) -> None:
        """One request, from its arrival to its end; what became of it stands in `outcomes`."""
        slo_class = ask.slo_class or self.flow.slo.default
        request = ask.request()
        line = self.journal.begin(request.id, slo_class, self._clock.now())
        self._asks[request.id] = ask
        if self.plan.front_s:
            await asyncio.sleep(self.plan.front_s)
        cached, failed, turn = 0, "", None
        result = Result.FAILED
        try:
            with self.flow.arriving(ask.slo_class, ask.tenant):
                blocks = AskedIds(ask, request)
                wish = Wish(
                    self.dispatcher.expected_s(blocks), slo_class=ask.slo_class, tenant=ask.tenant
                )
            async with self.flow.admit(wish) as turn:
                cached = await self._follow(request, blocks, turn)
                turn.served(line.ttft_s, line.itl_s)
                result = result_of(self.flow.slo.classes[slo_class], line.ttft_s, line.itl_s)
        except KvasirError as error:
            failed = error.message
            if turn is None and isinstance(error, Overloaded):
                result = Result.REFUSED
            elif turn is not None:
                turn.failed()
        finally:
            del self._asks[request.id], self.journal.lines[request.id]
        self.outcomes.append(
            Outcome(
                ask, slo_class, result, line.ttft_s, line.itl_s, line.tokens, cached,
                self._clock.now(), failed,
            )
        )  # fmt: skip

    async def _follow(self, request: Request, blocks: AskedIds, turn: Turn) -> int:
        """To its end; tokens of its prompt that were cached."""
        emissions = self.dispatcher.run(request, blocks, turn.placed, targets=turn.targets)
        cached, first = 0, True
        async with aclosing(emissions):
            async for emission in emissions:
                if first:
                    first, cached = False, emission.cached_tokens
                    self.flow.wake()  # its prefill is over: there is room
        return cached
