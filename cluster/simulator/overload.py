"""What becomes of requests when more come than a fleet can serve: the real line, placement and
latency-model prediction in virtual time, over simulated prefill workers.

Prompts share nothing, so that capacity is one second of prefill a second for each worker. How long
a prompt really takes differs from what was predicted. Decode is not simulated.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.simulator.arrivals import Arrival
from cluster.simulator.linear import LinearModel
from cluster.simulator.prefill_worker import Prefill, PrefillWorker
from router.flow.book import Result, result_of
from router.flow.classes import SloConfig
from router.flow.control import FlowControl, Wish
from router.flow.room import PoolRoom
from router.flow.turn import Turn
from router.placement.decision import Need
from router.placement.placement import Placement
from router.placement.policies.names import make_policy
from workers.core.block_pool import BlockPool
from workers.core.clock import VirtualClock, run_virtual
from workers.core.errors import Overloaded

TOKENS_PER_S = 10_000.0  # of one worker
MEAN_TOKENS = 2000
MOST_TOKENS = 4000
LENGTH_SIGMA = 0.8  # of the lengths' logarithms
ERROR_SIGMA = 0.2  # of the logarithm of real over predicted time
BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests of one tenant and class, Poisson, from `start_s` to `end_s`. `load`: predicted work
    a second, as a part of what the fleet can do. `returns`: who is refused comes back once, after
    the time that he was told."""

    slo_class: str
    load: float
    tenant: str = ""
    start_s: float = 0.0
    end_s: float = 120.0
    returns: bool = False


@dataclass(slots=True)
class Seen:
    """What became of one stream's requests; `asked` counts each once."""

    asked: int = 0
    results: Counter[Result] = field(default_factory=Counter)
    ttft_s: list[float] = field(default_factory=list)
    work_s: float = 0.0  # of good ones
    in_time: int = 0  # served while their stream still ran
    retry_s: list[float] = field(default_factory=list)
    returned: int = 0
    served_on_return: int = 0

    @property
    def attained(self) -> float:
        """Good ones of all that were asked."""
        return self.results[Result.GOOD] / self.asked if self.asked else 1.0

    @property
    def refused(self) -> float:
        return len(self.retry_s) / self.asked if self.asked else 0.0


class Fleet:
    """`workers` prefill workers; `held`: behind the line, else each request is placed at once and
    nobody is refused."""

    def __init__(self, slo: SloConfig, workers: int, *, held: bool = True, seed: int = 1) -> None:
        clock = VirtualClock()
        self._rng = random.Random(seed)
        latency = LinearModel(TOKENS_PER_S)
        self._placement = Placement(latency, self._rng, make_policy("kvasir", self._rng, clock))
        self.workers = [
            PrefillWorker(f"prefill-{n}", BlockPool(1 << 16, BLOCK_SIZE), TOKENS_PER_S)
            for n in range(workers)
        ]
        replicas = [worker.replica for worker in self.workers]
        self._by_name = {worker.replica.id: worker for worker in self.workers}
        self._inbox: dict[str, asyncio.Queue[tuple[Prefill, asyncio.Future[None]]]] = {
            worker.replica.id: asyncio.Queue() for worker in self.workers
        }
        self._replicas = replicas
        self._clock = clock
        self._held = held
        room = _Room(self, PoolRoom(replicas, latency, self._placement))
        self.control = FlowControl(slo, room, clock, max_in_flight=1 << 20)

    def progress(self) -> None:
        for worker in self.workers:
            worker.progress(self._clock.now())

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.control.run())
            for worker in self.workers:
                tasks.create_task(self._work(worker))

    async def serve(self, stream: Stream, tokens: int, seen: Seen) -> None:
        """One request, and a second time where its stream returns."""
        seen.asked += 1
        retry_s = await self._once(stream, tokens, seen)
        if retry_s is None:
            return
        seen.retry_s.append(retry_s)
        seen.results[Result.REFUSED] += 1
        if stream.returns:
            await asyncio.sleep(retry_s)
            seen.returned += 1
            seen.served_on_return += await self._once(stream, tokens, seen) is None

    async def _once(self, stream: Stream, tokens: int, seen: Seen) -> float | None:
        """None: it was served; else when to come back."""
        came = self._clock.now()
        wish = Wish(tokens / TOKENS_PER_S, slo_class=stream.slo_class, tenant=stream.tenant)
        if not self._held:
            await self._prefill(tokens)
            self._judge(stream, wish, came, seen)
            return None
        try:
            async with self.control.admit(wish) as turn:
                await self._prefill(tokens, turn)
                self._judge(stream, wish, came, seen)
                return None
        except Overloaded as error:
            assert error.retry_after_s is not None
            return error.retry_after_s

    def _judge(self, stream: Stream, wish: Wish, came: float, seen: Seen) -> None:
        now = self._clock.now()
        result = result_of(self.control.slo.classes[stream.slo_class], now - came, None)
        seen.ttft_s.append(now - came)
        seen.results[result] += 1
        seen.work_s += wish.work_s if result is Result.GOOD else 0.0
        seen.in_time += now <= stream.end_s

    async def _prefill(self, tokens: int, turn: Turn | None = None) -> None:
        self.progress()
        decision = self._placement.place(Need("prefill", tokens, {}), self._replicas)
        assert decision is not None, "nobody is down here"
        load = decision.replica.assignments.add(tokens, tokens)
        if turn is not None:
            turn.placed()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        job = Prefill(Arrival(self._clock.now(), tokens, (), b""), load)
        self._inbox[decision.replica.id].put_nowait((job, done))
        await done

    async def _work(self, worker: PrefillWorker) -> None:
        """One prompt after the other, as they came."""
        inbox = self._inbox[worker.replica.id]
        while True:
            job, done = await inbox.get()
            worker.enqueue(job)
            now = self._clock.now()
            predicted_s = worker.start(now).finish_s - now
            await asyncio.sleep(predicted_s * self._rng.lognormvariate(0.0, ERROR_SIGMA))
            worker.finish()
            worker.replica.assignments.remove(job.load)
            done.set_result(None)
            self.control.wake()


class _Room:
    """PoolRoom with progress as workers report it: after each chunk, thus nearly always."""

    def __init__(self, fleet: Fleet, room: PoolRoom) -> None:
        self._fleet = fleet
        self._room = room

    @property
    def servers(self) -> int:
        return self._room.servers

    def backlog_s(self, unplaced_s: float, *, background: bool, itl_s: float | None) -> float:
        self._fleet.progress()
        return self._room.backlog_s(unplaced_s, background=background, itl_s=itl_s)


def play(
    slo: SloConfig, streams: Sequence[Stream], *, workers: int = 4, held: bool = True, seed: int = 1
) -> list[Seen]:
    """What became of each stream, when all is over."""

    async def main() -> list[Seen]:
        fleet = Fleet(slo, workers, held=held, seed=seed)
        running = asyncio.create_task(fleet.run())
        seen = [Seen() for _ in streams]
        async with asyncio.TaskGroup() as tasks:
            for number, (stream, one) in enumerate(zip(streams, seen, strict=True)):
                rng = random.Random(1000 * seed + number)
                tasks.create_task(_arrive(fleet, stream, one, workers, rng, tasks))
        running.cancel()
        return seen

    return run_virtual(main())


async def _arrive(
    fleet: Fleet, stream: Stream, seen: Seen, workers: int, rng: random.Random, tasks: Any
) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    rate = stream.load * workers * TOKENS_PER_S / MEAN_TOKENS
    await asyncio.sleep(stream.start_s)
    while loop.time() - began < stream.end_s:
        tasks.create_task(fleet.serve(stream, _length(rng), seen))
        await asyncio.sleep(rng.expovariate(rate))


def _length(rng: random.Random) -> int:
    """Of a prompt: lognormal, with MEAN_TOKENS as its mean but for what is cut off."""
    mu = math.log(MEAN_TOKENS) - LENGTH_SIGMA**2 / 2
    return min(MOST_TOKENS, max(16, round(rng.lognormvariate(mu, LENGTH_SIGMA))))
