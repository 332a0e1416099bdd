"""Lets the plan's faults strike, and remembers what they struck."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field

import grpc

from tests.chaos.cluster import Cluster
from tests.chaos.network import Hop
from tests.chaos.plan import Fault, Kind, Plan
from tests.chaos.rpc import SimChannel
from workers.wire import worker_pb2 as worker
from workers.wire import worker_pb2_grpc as worker_grpc

DISTURBING = (Kind.KILL, Kind.HANG, Kind.PARTITION, Kind.CUT, Kind.DRAIN)


@dataclass(slots=True)
class Strike:
    """`struck`: requests that were served where it struck."""

    fault: Fault
    at_s: float
    what: str
    struck: frozenset[str] = frozenset()


@dataclass
class Striker:
    """`cancel(request)` makes its client leave; False when it is gone already."""

    plan: Plan
    cluster: Cluster
    cancel: Callable[[str], bool]
    rng: random.Random
    strikes: list[Strike] = field(default_factory=list)
    armed: bool = True
    # in nobody's context: a strike cannot be frozen
    _context: Context = field(default_factory=copy_context)
    _seen: dict[str, int] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def arm(self) -> None:
        loop = asyncio.get_running_loop()
        self._watched = [fault for fault in self.plan.faults if fault.step]
        if self._watched:
            self.cluster.network.on_hop = self._hop
        for fault in self.plan.faults:
            if not fault.step:
                loop.call_at(loop.time() + fault.at_s, self._strike, fault, fault.target)

    def disarm(self) -> None:
        self.armed = False
        self.cluster.network.on_hop = lambda hop: None

    def _hop(self, hop: Hop) -> None:
        seen = self._seen[hop.step] = self._seen.get(hop.step, 0) + 1
        for fault in self._watched:
            if fault.step == hop.step and fault.nth == seen:
                at_it = (hop.src, hop.dst)[fault.end].name
                target = at_it if at_it in self.plan.workers else fault.target
                if fault.kind is Kind.CANCEL:
                    target = fault.target
                if fault.kind is Kind.PARTITION:
                    target = f"{hop.src.name} {hop.dst.name}"
                asyncio.get_running_loop().call_later(
                    fault.lag_s, self._strike, fault, target, context=self._context
                )

    def _strike(self, fault: Fault, target: str) -> None:
        if not self.armed:
            return
        struck = self._struck(fault, target)
        what = getattr(self, f"_{fault.kind}")(fault, target)
        if what:
            now = asyncio.get_running_loop().time()
            self.strikes.append(Strike(fault, now, f"{fault.kind} {what}", struck))

    def _struck(self, fault: Fault, target: str) -> frozenset[str]:
        if fault.kind not in DISTURBING:
            return frozenset()
        names = target.split()
        calls = self.cluster.network.calls
        return frozenset(
            name for call in calls if call.dst.name in names for name in call.request_ids.values()
        )

    # -- one method a kind: what it did, or "" ---------------------------------------------------

    def _kill(self, fault: Fault, target: str) -> str:
        if not self.cluster.kill(target):
            return ""
        self._later(fault.seconds, lambda: self.restart(target))
        return f"{target}, back after {fault.seconds:.2f} s"

    def _hang(self, fault: Fault, target: str) -> str:
        made = self.cluster.workers.get(target)
        if made is None or made.host.frozen:
            return ""
        made.host.freeze()
        self.cluster.network.silent(made.host)
        self._later(fault.seconds, made.host.thaw)
        return f"{target} for {fault.seconds:.2f} s"

    def _slow(self, fault: Fault, target: str) -> str:
        made = self.cluster.workers.get(target)
        if made is None:
            return ""
        made.runner.slow = 20.0
        self.cluster.network.slow(target, 0.2, fault.seconds)
        self._later(fault.seconds, lambda: setattr(made.runner, "slow", 1.0))
        return f"{target} for {fault.seconds:.2f} s"

    def _partition(self, fault: Fault, target: str) -> str:
        one, other = target.split() if " " in target else (target, fault.other)
        self.cluster.network.cut(one, other, fault.seconds)
        return f"{one} - {other} for {fault.seconds:.2f} s"

    def _duplicate(self, fault: Fault, target: str) -> str:
        self.cluster.network.weather.duplicate = 0.3
        return "from now on"

    def _reorder(self, fault: Fault, target: str) -> str:
        weather = self.cluster.network.weather
        before = weather.latency_s
        weather.latency_s = (before[0], 0.3)
        self._later(fault.seconds, lambda: setattr(weather, "latency_s", before))
        return f"for {fault.seconds:.2f} s"

    def _cancel(self, fault: Fault, target: str) -> str:
        return target if self.cancel(target) else ""

    def _corrupt(self, fault: Fault, target: str) -> str:
        times = self.rng.choice([1, 1, 2, 4])
        self.cluster.fabric.corrupt += times
        return f"{times} messages of KV"

    def _cut(self, fault: Fault, target: str) -> str:
        links = [link for link in self.cluster.fabric.links_of(target) if link.failed is None]
        for link in links:
            link.fail("cut")
        return f"{len(links)} links of {target}" if links else ""

    def _drain(self, fault: Fault, target: str) -> str:
        made = self.cluster.workers.get(target)
        if made is None or made.leave.is_set():
            return ""
        made.leave.set()
        made.task.add_done_callback(
            lambda _: self._later(fault.seconds, lambda: self.restart(target))
        )
        return f"{target}, back {fault.seconds:.2f} s after its end"

    def _move(self, fault: Fault, target: str) -> str:
        network = self.cluster.network
        streams = [call for call in network.calls if call.method == "Decode" and call.server]
        running = [(s.dst.name, name) for s in streams for name in s.request_ids.values()]
        if not running:
            return ""
        where, request = self.rng.choice(running)
        channel = SimChannel(network, self.cluster.router.host, where)
        self._spawn(self._ask_to_move(channel, request))
        return f"{request} away from {where}"

    async def _ask_to_move(self, channel: SimChannel, request: str) -> None:
        try:
            stub = worker_grpc.WorkerStub(channel)
            await stub.Move(worker.MoveRequest(request_id=request), timeout=2.0)
        except grpc.aio.AioRpcError:
            pass  # it is gone, or does not answer

    def _redis(self, fault: Fault, target: str) -> str:
        store = self.cluster.store
        store.up = False
        store.flush()
        self._later(fault.seconds, lambda: setattr(store, "up", True))
        return f"away for {fault.seconds:.2f} s"

    def restart(self, name: str) -> None:
        if name not in self.cluster.workers:
            self.cluster.start(name)

    def heal(self) -> None:
        """Everything works from now on."""
        self.disarm()
        self.cluster.network.heal()
        self.cluster.store.up = True
        self.cluster.fabric.corrupt = 0
        for made in list(self.cluster.workers.values()):
            made.host.thaw()
            made.runner.slow = 1.0

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(seconds, do, context=self._context)

    def _spawn(self, work) -> None:
        task = self.cluster.router.host.spawn(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
