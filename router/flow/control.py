"""The line in front of the cluster: holds requests until a replica has room, in fair order, and
says at once to those who cannot be served in time when to come back."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from router.flow.book import Book, Outcome
from router.flow.classes import FlowKey, SloClass, SloConfig
from router.flow.queues import FairQueues
from router.flow.rates import OVER_S, LateShare, Offered, Pace, Promises
from router.flow.turn import Turn, Unplaced
from router.flow.waiting import Place, Waiting
from workers.core.clock import Clock
from workers.core.errors import InvalidRequest, KvasirError, Overloaded, Unavailable

LOOK_AGAIN_S = 0.02  # while somebody waits: replicas get room without telling
LEAST_SPARE = 0.02  # of the replicas: a line that does not move at all has no honest estimate
PROMISED = 0.1  # of the replicas, for those who come back, while more arrives than can be served
RETRY_AT_LEAST_S = 1.0
RETRY_AT_MOST_S = 3600.0
IN_USE_S = 60.0  # since its last request a class counts as served
BACKGROUND_PART = 0.75  # of the requests that may be in flight: no more of them are background
STOPPING = "the router is stopping"
# Of a TTFT target: who is served at the last moment is late by any error of a prediction.
MARGIN = 0.1


class Room(Protocol):
    """What the line knows of the cluster."""

    @property
    def servers(self) -> int:
        """Replicas that prefill now."""

    def backlog_s(self, unplaced_s: float, *, background: bool, itl_s: float | None) -> float:
        """How long a request that is given out now would wait at its replica; `unplaced_s` is work
        that was granted and that no replica's load counts yet. 0 where there is no replica: who
        places it says why not. What is `background` finds less room to decode; `itl_s`: the target
        that decodes have."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How a request wants to be treated. `work_s`: predicted seconds of prefill; `deadline_s`: the
    client leaves then, counted from now."""

    work_s: float
    slo_class: str | None = None
    tenant: str = ""
    deadline_s: float | None = None
    priority: int = 0


class FlowControl:
    """admit() once for each request; run() grants turns until cancelled. `book` says what became of
    them."""

    def __init__(
        self,
        slo: SloConfig,
        room: Room,
        clock: Clock,
        *,
        max_in_flight: int = 1024,
        hold_s: float = 0.1,
    ) -> None:
        """`max_in_flight`: turns at once, whatever room there is. `hold_s`: a request is held back
        while it would wait longer than that at a replica, where nobody can overtake it. Background
        ones begin where nobody waits."""
        self.book = Book(slo.classes, slo.tenants)
        self.in_flight = 0
        self._slo = slo
        self._max_in_flight = max_in_flight
        self._background_in_flight = 0
        self._hold_s = hold_s
        self._room = room
        self._clock = clock
        self._queues = FairQueues()
        self._granted: dict[Waiting, asyncio.Future[Turn]] = {}
        self._unplaced = Unplaced()
        self._changed = asyncio.Event()
        self._offered = Offered(clock.now())
        self._late = LateShare(clock.now())
        self._pace = Pace(clock.now())
        self._promises = Promises()
        self._asked_at: dict[str, float] = {}  # class -> its last request
        self._arriving: Counter[str] = Counter()
        self._draining = False

    @property
    def queued(self) -> int:
        return len(self._queues)

    @property
    def slo(self) -> SloConfig:
        return self._slo

    def change(self, slo: SloConfig) -> None:
        """New targets for who comes from now on."""
        self._slo = slo
        self.book.change(slo.classes, slo.tenants)

    def itl_target_s(self) -> float | None:
        """The tightest of the classes that had requests of late; of all, while none had."""
        now, classes = self._clock.now(), self._slo.classes
        used = [name for name, at in self._asked_at.items() if now - at <= IN_USE_S]
        counted = [classes[name] for name in used if name in classes] or classes.values()
        return min((slo.itl for slo in counted if slo.itl is not None), default=None)

    def drain(self) -> None:
        """Lets nobody in any more, also of those who wait."""
        self._draining = True
        for waiting in list(self._granted):
            self._turn_away(waiting, Outcome.STOPPING, _stopping())

    def wake(self) -> None:
        """A replica may have room: look now, if anybody waits."""
        if self.queued:
            self._changed.set()

    @contextmanager
    def arriving(self, slo_class: str | None, tenant: str) -> Iterator[None]:
        """While the block makes a wish of a request. Raises at once what admit() would raise of any
        wish of that class: before it has cost anything."""
        name, slo = self._class_of(slo_class)
        flow = FlowKey(name, tenant)
        if self._draining:
            self.book.passed(flow, Outcome.STOPPING)
            raise _stopping()
        if self.book.queued[name] + self._arriving[name] >= slo.max_queue:
            now = self._clock.now()
            self.book.passed(flow, Outcome.QUEUE_FULL)
            raise self._full(self._waiting(Wish(0.0, slo_class, tenant), name, slo, now), now)
        self._arriving[name] += 1
        try:
            yield
        finally:
            self._arriving[name] -= 1

    @asynccontextmanager
    async def admit(self, wish: Wish) -> AsyncIterator[Turn]:
        """Waits for its turn, which it has while the block runs. Raises InvalidRequest for an
        unknown class, Unavailable while draining, Overloaded with a retry time: at once, or as soon
        as it shows that it cannot be served in time."""
        name, slo = self._class_of(wish.slo_class)
        now = self._clock.now()
        waiting = self._waiting(wish, name, slo, now)
        self._asked_at[name] = now
        if self._draining:
            self.book.passed(waiting.flow, Outcome.STOPPING)
            raise _stopping()
        if not slo.background:
            self._offered.add(wish.work_s, now)
        self._refuse_hopeless(waiting, slo, now)
        turn = await self._in_line(waiting)
        self.book.passed(waiting.flow, Outcome.ADMITTED)
        try:
            yield turn
        finally:
            self._over(turn, waiting)

    async def run(self) -> None:
        while True:
            self._changed.clear()
            self._look()
            try:
                async with asyncio.timeout(LOOK_AGAIN_S if self.queued else None):
                    await self._changed.wait()
            except TimeoutError:
                pass

    # -- inside ----------------------------------------------------------------------------------

    async def _in_line(self, waiting: Waiting) -> Turn:
        granted: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        alone = not self.queued
        self._granted[waiting] = granted
        self._queues.add(waiting)
        self.book.joined(waiting.flow)
        try:
            if alone:  # the common case: there is room, and nobody to wait for
                self._look()
            if not granted.done():
                self.wake()
            return await granted
        except asyncio.CancelledError:
            refused = granted.done() and not granted.cancelled() and granted.exception()
            if not refused:
                self.book.passed(waiting.flow, Outcome.LEFT)
                if granted.done() and not granted.cancelled():
                    self._over(granted.result(), waiting)  # it had its turn and left
            raise
        finally:
            self._queues.remove(waiting)
            self._granted.pop(waiting, None)
            self.book.left(waiting.flow)

    def _over(self, turn: Turn, waiting: Waiting) -> None:
        turn.placed()
        self.in_flight -= 1
        self._background_in_flight -= waiting.background
        self.wake()

    def _look(self) -> None:
        """Refuse who is out of time, then grant turns while there is room."""
        now = self._clock.now()
        self._pace.passed(now, busy=self.queued > 0)
        for waiting in self._queues.over(now):
            self._refuse(waiting, f"waited {now - waiting.arrived:.1f} s", now)
        backlog_s = self._backlog_s(background=False)
        for waiting in self._queues.demote(now + backlog_s):
            if now + self._wait_s(waiting, now) > waiting.give_up_at:
                self._refuse(waiting, "too much is before it", now)
        known_s: float | None = backlog_s
        for background in (False, True):
            while (first := self._queues.next(background=background)) is not None:
                if not self._has_room(None if background else known_s, background=background):
                    return
                self._grant(first, now)
                known_s = None  # it has changed

    def _has_room(self, known_s: float | None, *, background: bool) -> bool:
        """`known_s`: the backlog, where it was just asked for."""
        full = background and self._background_in_flight >= BACKGROUND_PART * self._max_in_flight
        if full or self.in_flight >= self._max_in_flight:
            return False
        backlog_s = self._backlog_s(background=background) if known_s is None else known_s
        return backlog_s <= (0.0 if background else self._hold_s)

    def _grant(self, waiting: Waiting, now: float) -> None:
        waited = now > waiting.arrived
        self._pace.granted(waiting.work_s, waited=waited)
        if waited or self.queued > 1:
            on_time = waiting.place is Place.ON_TIME
            self._late.granted(waiting.work_s, now, on_time=on_time)
        self._queues.grant(waiting, now)
        future = self._granted[waiting]
        if future.cancelled():
            return  # its client has left
        self.in_flight += 1
        self._background_in_flight += waiting.background
        slo = self._slo.classes.get(waiting.flow.slo_class) or SloClass()  # gone since it came
        waited_s = now - waiting.arrived
        future.set_result(
            Turn(waiting, slo, self._unplaced, self.book, waited_s, self.itl_target_s())
        )

    def _backlog_s(self, *, background: bool) -> float:
        itl_s = self.itl_target_s()
        return self._room.backlog_s(self._unplaced.work_s, background=background, itl_s=itl_s)

    def _class_of(self, slo_class: str | None) -> tuple[str, SloClass]:
        name = self._slo.default if slo_class is None else slo_class
        slo = self._slo.classes.get(name)
        if slo is None:
            known = ", ".join(sorted(self._slo.classes))
            raise InvalidRequest(
                f"no service class {name!r}; there are: {known}", param="slo_class"
            )
        return name, slo

    def _waiting(self, wish: Wish, name: str, slo: SloClass, now: float) -> Waiting:
        give_up = now + slo.max_wait
        if wish.deadline_s is not None:
            give_up = min(give_up, now + wish.deadline_s - wish.work_s)
        return Waiting(
            FlowKey(name, wish.tenant),
            wish.work_s,
            now,
            weight=slo.weight,
            tenant_weight=self._slo.tenants.get(wish.tenant, 1.0),
            background=slo.background,
            start_by=_start_by(slo, wish, now),
            give_up_at=give_up,
            priority=wish.priority,
        )

    def _wait_s(self, waiting: Waiting, now: float) -> float:
        """In line: who is late gets what nobody asks for, or what those on time have left of late;
        background, what all others leave."""
        if waiting.background:
            return self._lasting_s(waiting, now)
        servers = max(1, self._room.servers)
        pace, prior_s = self._pace.per_s(servers), self._pace.prior_s
        spare = max(self._late.part(servers * prior_s) * pace, self._spare(LEAST_SPARE, now))
        return self._queues.wait_s(waiting, pace, spare, prior_s, now)

    def _lasting_s(self, waiting: Waiting, now: float) -> float:
        """Behind all that arrives, if that goes on for ever."""
        pace = self._pace.per_s(max(1, self._room.servers))
        return self._queues.lasting_s(waiting, pace, self._spare(LEAST_SPARE, now), now)

    def _spare(self, least: float, now: float) -> float:
        """Seconds of work a second that nobody new takes, at least that part of all."""
        pace = self._pace.per_s(max(1, self._room.servers))
        return max(pace - self._offered.per_s(now), least * pace)

    def _refuse_hopeless(self, waiting: Waiting, slo: SloClass, now: float) -> None:
        name = waiting.flow.slo_class
        if self.book.queued[name] >= slo.max_queue:
            self.book.passed(waiting.flow, Outcome.QUEUE_FULL)
            raise self._full(waiting, now)
        wait_s = self._wait_s(waiting, now) if self.queued else 0.0
        if now + wait_s > waiting.give_up_at:
            self.book.passed(waiting.flow, Outcome.HOPELESS)
            raise self._refusal(waiting, f"it would wait {wait_s:.1f} s", now)

    def _full(self, waiting: Waiting, now: float) -> Overloaded:
        return self._refusal(waiting, f"the queue of class {waiting.flow.slo_class} is full", now)

    def _refuse(self, waiting: Waiting, why: str, now: float) -> None:
        self._turn_away(waiting, Outcome.WAITED, self._refusal(waiting, why, now))

    def _turn_away(self, waiting: Waiting, outcome: Outcome, error: KvasirError) -> None:
        granted = self._granted[waiting]
        self._queues.remove(waiting)
        if not granted.done():
            self.book.passed(waiting.flow, outcome)
            granted.set_exception(error)

    def _refusal(self, waiting: Waiting, why: str, now: float) -> Overloaded:
        """Come back when what is before it now would be done, and who was told so before."""
        spare, pace = self._spare(PROMISED, now), self._pace.per_s(max(1, self._room.servers))
        # Nobody knows how long an overload lasts: for as long as it has been seen.
        again_s = (self._queues.before_s(waiting) + OVER_S * self._offered.per_s(now)) / pace
        wait_s = max(RETRY_AT_LEAST_S, min(self._lasting_s(waiting, now), again_s))
        limit_s = waiting.give_up_at - waiting.arrived
        return Overloaded(
            f"{why}; class {waiting.flow.slo_class} and deadline allow {max(limit_s, 0):.1f} s",
            retry_after_s=self._promises.next_s(
                waiting.flow, waiting.work_s, wait_s, spare, RETRY_AT_MOST_S, now
            ),
        )


def _stopping() -> Unavailable:
    return Unavailable(STOPPING, retry_after_s=RETRY_AT_LEAST_S)


def _start_by(slo: SloClass, wish: Wish, now: float) -> float:
    if slo.ttft is None:
        return math.inf
    return now + slo.ttft * (1 - MARGIN) - wish.work_s
