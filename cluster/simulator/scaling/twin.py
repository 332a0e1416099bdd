"""A fast twin of a scaled cluster: one line in front of prefill servers, and decode servers that
share their sequences evenly. Request by request, but no router, no scheduler and no step: hours
of it take seconds, and load_tests/planner_table.py compares it with the whole-cluster simulator.

A sequence gets one token a step, whatever its age, so all of them advance on one clock that counts
steps; who has n tokens to come ends when it shows n more than at its beginning.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from cluster.simulator.scaling.line import PrefillLine, Waiting
from cluster.simulator.scaling.load import Arrival, Shape
from cluster.simulator.scaling.sizes import Site
from router.flow.room import AHEAD
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
class _Decoding:
    first_at: float
    request: Waiting


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

    def full(self, under_way: int) -> bool:
        """Whether prompts have to wait, as the router lets none be computed before a place is soon
        free; `under_way`: those that are."""
        if not self.active:
            return False
        there = self.active + len(self.waiting) + under_way
        return there >= self.servers * (self._places(self._kv / self.active) + AHEAD)

    @property
    def next_at(self) -> float:
        """When the next answer ends, as it looks now."""
        if not self._ends:
            return math.inf
        return self._now + (self._ends[0][0] - self._steps) * self._step_s()

    def join(self, first_at: float, request: Waiting) -> None:
        self.waiting.append(_Decoding(first_at, request))
        self._admit()

    def until(self, end: float) -> Iterator[tuple[float, _Decoding]]:
        """Answers that end by then."""
        while (over := self.next_at) <= end:
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
        self._now = 0.0
        self._number = 0
        self._begun: list[tuple[float, int, Waiting]] = []  # a heap of prefills under way

    @property
    def over(self) -> bool:
        there = len(self.prefill) or self._begun or self.decode.active or self.decode.waiting
        return self._next is None and not there

    def until(self, end: float) -> tuple[list[Arrival], list[Ended]]:
        """Who came and who left, refused ones included."""
        came: list[Arrival] = []
        gone: list[Ended] = []
        while self._next is not None and self._next.at_s < end:
            came.append(self._next)
            self.prefill.join(self._next)
            self._next = next(self._arrivals, None)
        while (at := self.prefill.next_at(self._now)) < end:
            self._decode(at, gone)
            if self.decode.full(len(self._begun)):
                self._decode(min(end, self.decode.next_at), gone)
                continue
            begun = self.prefill.begin(at)
            if begun is not None:
                self._number += 1
                heappush(self._begun, (begun[0], self._number, begun[1]))
        self._decode(end, gone)
        self.prefill.pass_until(end)
        for refused in self.prefill.refused:
            gone.append(Ended(refused.at_s, end, math.inf, None, refused.shape, False))
        self.prefill.refused.clear()
        return came, gone

    def _decode(self, until: float, gone: list[Ended]) -> None:
        while self._begun and self._begun[0][0] <= until:
            first_at, _, request = heappop(self._begun)
            gone += (self._ended(*each) for each in self.decode.until(first_at))
            self.decode.join(first_at, request)
        gone += (self._ended(*each) for each in self.decode.until(until))
        self._now = until

    def _ended(self, over: float, each: _Decoding) -> Ended:
        promise, request = self.site.promise, each.request
        ttft_s = each.first_at - request.at_s
        more = request.shape.output - 1
        itl_s = (over - each.first_at) / more if more > 0 else None
        good = ttft_s <= promise.ttft_s and (itl_s is None or itl_s <= promise.itl_s)
        return Ended(request.at_s, over, ttft_s, itl_s, request.shape, good)
