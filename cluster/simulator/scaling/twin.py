"""A fast twin of a scaled cluster: one line in front of prefill servers, and decode servers that
share their sequences evenly. Request by request, but no router, no scheduler and no step: hours
of it take seconds, and load_tests/planner_table.py compares it with the whole-cluster simulator.

A sequence gets one token a step, whatever its age, so all of them advance on one clock that counts
steps; who has n tokens to come ends when it shows n more than at its beginning.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from typing import NamedTuple

from cluster.simulator.scaling.load import Arrival, Shape
from cluster.simulator.scaling.sizes import Site
from workers.core.step_work import StepWork

HELD = 0.5  # of an answer's KV is there while it is made, on average


class Ended(NamedTuple):
    """`itl_s`: None for an answer of one token; `ttft_s`: infinite for one that was refused."""

    arrived: float
    ended: float
    ttft_s: float
    itl_s: float | None
    shape: Shape
    good: bool


@dataclass(slots=True)
class _Waiting:
    at_s: float
    shape: Shape
    work_s: float


class PrefillLine:
    """First come, first served; a server that leaves ends what it does."""

    def __init__(self, site: Site, servers: int, now: float) -> None:
        self._site = site
        self._free_at = [now] * servers
        self.waiting: deque[_Waiting] = deque()
        self.refused: list[_Waiting] = []
        self._work: dict[Shape, float] = {}

    @property
    def servers(self) -> int:
        return len(self._free_at)

    def running(self, now: float) -> int:
        return sum(free_at > now for free_at in self._free_at)

    def add(self, now: float) -> None:
        heappush(self._free_at, now)

    def remove(self, now: float) -> float:
        """The one that is free first; when that is."""
        return max(now, heappop(self._free_at))

    def join(self, arrival: Arrival) -> None:
        shape = arrival.shape
        work_s = self._work.get(shape)
        if work_s is None:
            model, cached = self._site.pools["prefill"].model, shape.prompt - shape.uncached
            work_s = self._site.latency.prefill_s(model, shape.uncached, cached)
            self._work[shape] = work_s
        self.waiting.append(_Waiting(arrival.at_s, shape, work_s))

    def until(self, end: float) -> Iterable[tuple[float, _Waiting]]:
        """Prefills that begin before `end`, each with the time it is over."""
        waiting, free_at = self.waiting, self._free_at
        most = self._site.promise.max_wait_s
        while waiting and waiting[0].at_s < end:
            first = waiting[0]
            begin = max(first.at_s, free_at[0]) if free_at else math.inf
            if min(begin, end) - first.at_s > most:
                self.refused.append(waiting.popleft())
                continue
            if begin >= end:
                return
            waiting.popleft()
            heapreplace(free_at, begin + first.work_s)
            yield begin + first.work_s, first


@dataclass(slots=True)
class _Decoding:
    first_at: float
    request: _Waiting


class DecodeShare:
    """All decode servers as one. `draining`: those that still decode, and take nothing new."""

    def __init__(self, site: Site, servers: int, now: float) -> None:
        self._site = site
        self.servers = servers
        self.draining = 0
        self.active = 0
        self.waiting: deque[_Decoding] = deque()
        self._kv = 0.0
        self._now = now
        self._steps = 0.0  # the clock that counts them
        self._begun = 0.0  # what it showed when those that decode began, summed
        self._ends: list[tuple[float, int, _Decoding]] = []
        self._number = 0
        self._batch = math.inf
        self._context = 1.0

    @property
    def made(self) -> int:
        """Tokens of the answers that are decoded now."""
        return max(0, round(self.active * self._steps - self._begun))

    def until(
        self, end: float, begun: Iterable[tuple[float, _Waiting]]
    ) -> Iterable[tuple[float, _Decoding]]:
        """Answers that end before `end`; `begun`: first tokens, in order."""
        for first_at, request in begun:
            yield from self._run(first_at)
            self.waiting.append(_Decoding(first_at, request))
            self._admit()
        yield from self._run(end)

    def _run(self, end: float) -> Iterable[tuple[float, _Decoding]]:
        while self._ends:
            step_s = self._step_s()
            over = self._now + (self._ends[0][0] - self._steps) * step_s
            if over > end:
                break
            self._steps, self._now = self._ends[0][0], over
            each = heappop(self._ends)[2]
            self.active -= 1
            self._begun -= self._steps - _decoded(each.request.shape)
            self._kv -= _held(each.request.shape)
            self._admit()
            yield over, each
        if self._ends and end > self._now:
            self._steps += (end - self._now) / self._step_s()
        self._now = max(self._now, end)
        self._admit()

    def _step_s(self) -> float:
        servers = max(1, self.servers + self.draining)
        work = StepWork.decode(
            max(1, math.ceil(self.active / servers)), math.ceil(self._kv / servers)
        )
        return self._site.latency.step_s(self._site.pools["decode"].model, work)

    def _admit(self) -> None:
        while self.waiting:
            shape = self.waiting[0].request.shape
            held = _held(shape)
            if not self.servers or self.active >= self.servers * self._places(held):
                return
            each = self.waiting.popleft()
            self.active += 1
            self._kv += held
            self._number += 1
            self._begun += self._steps
            heappush(self._ends, (self._steps + _decoded(shape), self._number, each))

    def _places(self, held: float) -> float:
        """Of one server, for sequences as they are on average."""
        context = (self._kv + held) / (self.active + 1)
        if abs(context / self._context - 1.0) > 0.05:
            self._context = context
            self._batch = self._site.batch(max(1, math.ceil(context)))
        return self._batch


def _decoded(shape: Shape) -> int:
    """Tokens after the first."""
    return max(0, shape.output - 1)


def _held(shape: Shape) -> float:
    return shape.prompt + HELD * shape.output


class Twin:
    """until() some time, again and again; sizes are changed in between."""

    def __init__(self, site: Site, prefill: int, decode: int, arrivals: Iterable[Arrival]) -> None:
        self.site = site
        self.prefill = PrefillLine(site, prefill, 0.0)
        self.decode = DecodeShare(site, decode, 0.0)
        self._arrivals = iter(arrivals)
        self._next = next(self._arrivals, None)
        self._begun: list[tuple[float, _Waiting]] = []  # prefills under way

    @property
    def over(self) -> bool:
        there = self.prefill.waiting or self._begun or self.decode.active or self.decode.waiting
        return self._next is None and not there

    def until(self, end: float) -> tuple[list[Arrival], list[Ended]]:
        """Who came and who left, refused ones included."""
        came, gone = [], []
        while self._next is not None and self._next.at_s < end:
            came.append(self._next)
            self.prefill.join(self._next)
            self._next = next(self._arrivals, None)
        self._begun += self.prefill.until(end)
        self._begun.sort(key=lambda begun: begun[0])
        ready = [begun for begun in self._begun if begun[0] < end]
        self._begun = self._begun[len(ready) :]
        for over, each in self.decode.until(end, ready):
            gone.append(self._ended(over, each))
        for refused in self.prefill.refused:
            gone.append(Ended(refused.at_s, end, math.inf, None, refused.shape, False))
        self.prefill.refused.clear()
        return came, gone

    def _ended(self, over: float, each: _Decoding) -> Ended:
        promise, request = self.site.promise, each.request
        ttft_s = each.first_at - request.at_s
        more = request.shape.output - 1
        itl_s = (over - each.first_at) / more if more > 0 else None
        good = ttft_s <= promise.ttft_s and (itl_s is None or itl_s <= promise.itl_s)
        return Ended(request.at_s, over, ttft_s, itl_s, request.shape, good)
