"""A pool of the simulated fleet whose size changes: replicas start cold, and drain before they
stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from cluster.simulator.fleet.fleet import Fleet
from cluster.simulator.fleet.plan import ReplicaPlan

LOOK_S = 0.5  # whether who drains has nothing left


class ElasticPool:
    """Replicas `POOL-0`, `POOL-1` and so on, all alike. `cold_start_s`: from the order to a replica
    that takes work. Those that are paid for are up, starting or draining."""

    def __init__(self, fleet: Fleet, like: ReplicaPlan, cold_start_s: float) -> None:
        self.took_s: list[float] = []  # cold starts that are over
        self._fleet = fleet
        self._like = like
        self._cold_start_s = cold_start_s
        self._loop = asyncio.get_running_loop()
        self._starting: dict[str, asyncio.TimerHandle] = {}
        self._began: dict[str, float] = {}
        self._draining: dict[str, asyncio.TimerHandle] = {}
        self._up = [each.name for each in fleet.plan.replicas if each.pool == like.pool]
        self._ever = len(self._up)
        self._paid_s, self._paid_at = 0.0, self._loop.time()

    @property
    def up(self) -> list[str]:
        return list(self._up)

    @property
    def num_draining(self) -> int:
        return len(self._draining)

    @property
    def starting_s(self) -> list[float]:
        """Since when each of those that start does."""
        return [self._loop.time() - began for began in self._began.values()]

    @property
    def paid_s(self) -> float:
        """Replica-seconds so far."""
        self._pay()
        return self._paid_s

    @property
    def calls(self) -> int:
        """Requests that are at its workers."""
        workers = map(self._fleet.workers.__getitem__, (*self._up, *self._draining))
        return sum(len(worker.calls) for worker in workers)

    def resize(self, size: int) -> int:
        """How many replicas were ordered or given up: those that still start go first, then the
        least busy. Who drains is not taken back."""
        more = size - len(self._up) - len(self._starting)
        for _ in range(more):
            self._order()
        for _ in range(-more):
            if self._starting:
                self._cancel(next(reversed(self._starting)))
            elif self._up:
                self._drain(min(self._up, key=lambda name: len(self._fleet.workers[name].calls)))
        return abs(more)

    # -- inside ----------------------------------------------------------------------------------

    def _order(self) -> None:
        self._pay()
        name = f"{self._like.pool}-{self._ever}"
        self._ever += 1
        self._began[name] = self._loop.time()
        self._starting[name] = self._loop.call_later(self._cold_start_s, self._started, name)

    def _started(self, name: str) -> None:
        del self._starting[name]
        self.took_s.append(self._loop.time() - self._began.pop(name))
        self._fleet.add(replace(self._like, name=name))
        self._up.append(name)

    def _cancel(self, name: str) -> None:
        self._pay()
        self._starting.pop(name).cancel()
        del self._began[name]

    def _drain(self, name: str) -> None:
        self._up.remove(name)
        self._fleet.drain(name)
        self._later(self._look, name)

    def _look(self, name: str) -> None:
        if self._fleet.workers[name].leftover():
            self._later(self._look, name)
            return
        self._pay()
        del self._draining[name]
        self._fleet.remove(name)

    def _later(self, what: Callable[[str], None], name: str) -> None:
        self._draining[name] = self._loop.call_later(LOOK_S, what, name)

    def _pay(self) -> None:
        now = self._loop.time()
        paid = len(self._up) + len(self._starting) + len(self._draining)
        self._paid_s += paid * (now - self._paid_at)
        self._paid_at = now
