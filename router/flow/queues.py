"""Who goes next: fair between flows, and within one whoever can still be in time. No I/O, no clock.

A flow is one tenant's requests of one class. Flows share by start-time fair queueing (Goyal et al.
1996), charged in predicted work, so that a tenant who floods waits behind himself. In each flow:

    on time   can still meet its TTFT target if it starts now; the most urgent first
    late      cannot any more; served when nobody of its flow is on time, until it gives up

Serving the late last keeps goodput up in overload: FIFO would make everybody late. Fairness goes
before it: a tenant's late ones do not wait for those that another has on time. Background classes
come after all others.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from router.flow.classes import FlowKey
from router.flow.rates import Offered


CREDIT_S = 1.0  # work over weight: so much of a share that was left unused may be caught up on


class Place(StrEnum):
    ON_TIME = "on_time"
    LATE = "late"
    OUT = "out"  # granted, refused or left


@dataclass(eq=False, slots=True)
class Waiting:
    """One request in line. Times are the owner's clock; `work_s` is what it will take of one
    replica, of which its flow may use a share by `weight`. `start_by`: the last moment at which its
    TTFT target can be met, inf = has none. `give_up_at`: it is refused then."""

    flow: FlowKey
    work_s: float
    arrived: float
    weight: float = 1.0
    background: bool = False
    start_by: float = math.inf
    give_up_at: float = math.inf
    priority: int = 0  # higher goes first within its flow
    place: Place = Place.OUT


@dataclass(eq=False, slots=True)
class _Flow:
    weight: float
    background: bool
    offered: Offered
    lines: dict[Place, list[tuple[float, float, int, Waiting]]] = field(
        default_factory=lambda: {Place.ON_TIME: [], Place.LATE: []}
    )
    work_s: dict[Place, float] = field(
        default_factory=lambda: {Place.ON_TIME: 0.0, Place.LATE: 0.0}
    )
    length: int = 0
    finish: float = 0.0  # virtual time at which its last grant is paid for

    def first(self, place: Place) -> Waiting | None:
        """The next of a line. Those that left are dropped here."""
        line = self.lines[place]
        while line and line[0][3].place is not place:
            heapq.heappop(line)
        return line[0][3] if line else None


class FairQueues:
    def __init__(self) -> None:
        self._flows: dict[FlowKey, _Flow] = {}
        self._virtual = {False: 0.0, True: 0.0}  # of each band: background or not
        self._order = itertools.count()
        self._length = 0
        self._ends: list[tuple[float, int, Waiting]] = []  # a heap by give_up_at

    def __len__(self) -> int:
        return self._length

    def length(self, slo_class: str) -> int:
        return sum(flow.length for key, flow in self._flows.items() if key.slo_class == slo_class)

    def add(self, waiting: Waiting) -> None:
        flow = self._flows.get(waiting.flow)
        if flow is None:
            offered = Offered(waiting.arrived)
            flow = self._flows[waiting.flow] = _Flow(waiting.weight, waiting.background, offered)
        if not flow.length:  # nobody of it waits who came under other rules
            flow.background = waiting.background
        flow.weight = waiting.weight
        flow.offered.add(waiting.work_s, waiting.arrived)
        flow.length += 1
        self._length += 1
        self._line_up(flow, waiting, Place.ON_TIME)
        heapq.heappush(self._ends, (waiting.give_up_at, next(self._order), waiting))

    def demote(self, now: float) -> list[Waiting]:
        """Those that have become late since the last call."""
        late = []
        for flow in self._flows.values():
            while (first := flow.first(Place.ON_TIME)) is not None and first.start_by < now:
                flow.work_s[Place.ON_TIME] -= first.work_s
                self._line_up(flow, first, Place.LATE)
                late.append(first)
        return late

    def next(self, *, background: bool) -> Waiting | None:
        """Whose turn it is in this band, if anybody waits there. grant() takes him out."""
        able = [
            (self._start(flow), key, flow)
            for key, flow in self._flows.items()
            if flow.background is background and flow.length
        ]
        if not able:
            return None
        *_, flow = min(able, key=lambda item: item[:2])
        return flow.first(Place.ON_TIME) or flow.first(Place.LATE)

    def grant(self, waiting: Waiting) -> None:
        """He goes, and his flow pays for his work."""
        flow = self._flows[waiting.flow]
        start = self._start(flow)
        self._virtual[flow.background] = max(self._virtual[flow.background], start)
        flow.finish = start + waiting.work_s / flow.weight
        self.remove(waiting)

    def remove(self, waiting: Waiting) -> None:
        """He leaves the line without having been served; idempotent."""
        if waiting.place is Place.OUT:
            return
        flow = self._flows[waiting.flow]
        flow.work_s[waiting.place] -= waiting.work_s
        flow.length -= 1
        self._length -= 1
        waiting.place = Place.OUT
        if not flow.length:
            self._forget_idle()
        for place, line in flow.lines.items():
            if _mostly_dead(line, flow.length):
                flow.lines[place] = [entry for entry in line if entry[3].place is place]
                heapq.heapify(flow.lines[place])
        if _mostly_dead(self._ends, self._length):
            self._ends = [entry for entry in self._ends if entry[2].place is not Place.OUT]
            heapq.heapify(self._ends)

    def over(self, now: float) -> list[Waiting]:
        """Those who give up now; each is told once, and is still in line."""
        found = []
        while self._ends and self._ends[0][0] <= now:
            *_, waiting = heapq.heappop(self._ends)
            if waiting.place is not Place.OUT:
                found.append(waiting)
        return found

    def wait_s(self, waiting: Waiting, servers: float, spare: float, now: float) -> float:
        """How long `waiting` (in line or not yet) will wait: with so many replicas at work, `spare`
        of them not taken by what arrives meanwhile."""
        ahead = [flow for flow in self._flows.values() if flow.background <= waiting.background]
        everything = sum(sum(flow.work_s.values()) for flow in ahead)
        own = self._flows.get(waiting.flow)
        if own is None:
            own = _Flow(waiting.weight, waiting.background, Offered(now))
        # Others take turns with his flow, so he waits for no more than its share allows.
        others = sum(flow.weight for flow in ahead if flow.length and flow is not own)
        share = servers * waiting.weight / (waiting.weight + others)
        if waiting.place is not Place.LATE:
            soon = everything / servers
            if not waiting.background:
                soon = min(soon, own.work_s[Place.ON_TIME] / share)
            if now + soon <= waiting.start_by:
                return soon
        own_spare = share - own.offered.per_s(now)
        if waiting.background or own_spare <= 0:
            return everything / spare
        return min(everything / spare, sum(own.work_s.values()) / own_spare)

    def check_integrity(self) -> None:
        """Raise AssertionError unless counts and sums say what the lines hold."""
        assert self._length == sum(flow.length for flow in self._flows.values())
        for key, flow in self._flows.items():
            here = [w for line in flow.lines.values() for *_, w in line if w.place is not Place.OUT]
            kept = {id(w): w for w in here}.values()
            assert flow.length == len(kept), f"{key}: {flow.length} counted, {len(kept)} there"
            for place in (Place.ON_TIME, Place.LATE):
                work = sum(w.work_s for w in kept if w.place is place)
                assert math.isclose(work, flow.work_s[place], abs_tol=1e-6), key

    def _start(self, flow: _Flow) -> float:
        """Virtual time of its next grant."""
        return max(self._virtual[flow.background] - CREDIT_S, flow.finish)

    def _line_up(self, flow: _Flow, waiting: Waiting, place: Place) -> None:
        waiting.place = place
        flow.work_s[place] += waiting.work_s
        urgency = waiting.start_by if place is Place.ON_TIME else waiting.arrived
        entry = (-float(waiting.priority), urgency, next(self._order), waiting)
        heapq.heappush(flow.lines[place], entry)

    def _forget_idle(self) -> None:
        """A flow that waits for nothing and has paid is nobody: tenants come and go. Where nobody
        waits at all everything counts as paid."""
        for band in (False, True):
            flows = {key: flow for key, flow in self._flows.items() if flow.background is band}
            waiting = any(flow.length for flow in flows.values())
            paid = self._virtual[band] - CREDIT_S if waiting else math.inf
            for key, flow in flows.items():
                if not flow.length and flow.finish <= paid:
                    del self._flows[key]


def _mostly_dead(entries: Sequence[object], alive: int) -> bool:
    """Who left stays in a heap until it is on top, unless there are too many of them."""
    return len(entries) > 2 * alive + 64
