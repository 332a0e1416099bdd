"""Who goes next: fair between classes, then between the tenants of a class, and of one tenant
whoever can still be in time. No I/O, no clock.

Both levels share by start-time fair queueing (Goyal et al. 1996), charged in predicted work, so
that a tenant who floods waits behind himself, and a class has its share however many tenants
another has. Of each tenant's requests:

    on time   can still meet its TTFT target if it starts now; the most urgent first
    late      cannot any more; served when none of his is on time, until it gives up

Serving the late last keeps goodput up in overload: FIFO would make everybody late. Fairness goes
before it: a tenant's late ones do not wait for those that another has on time. Background classes
come after all others.

Every step costs the logarithm of what waits, whatever names tenants give themselves.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence

from router.flow.rates import LateShare, Offered
from router.flow.shares import Sharing
from router.flow.waiting import Place, Waiting


class _Tenant:
    """One tenant's requests of one class."""

    def __init__(self, now: float) -> None:
        self.offered = Offered(now)
        self.late = LateShare(now)
        self.work_s = {Place.ON_TIME: 0.0, Place.LATE: 0.0}
        self.length = 0
        self._lines: dict[Place, list[tuple[float, float, int, Waiting]]] = {
            Place.ON_TIME: [],
            Place.LATE: [],
        }

    def put(self, waiting: Waiting, place: Place, order: int) -> None:
        waiting.place = place
        self.work_s[place] += waiting.work_s
        urgency = waiting.start_by if place is Place.ON_TIME else waiting.arrived
        heapq.heappush(self._lines[place], (-float(waiting.priority), urgency, order, waiting))

    def first(self) -> Waiting:
        for place, line in self._lines.items():
            while line and line[0][3].place is not place:
                heapq.heappop(line)
            if line:
                return line[0][3]
        raise AssertionError("nobody of it waits")

    def tidy(self) -> None:
        for place, line in self._lines.items():
            if mostly_dead(line, self.length):
                line[:] = [entry for entry in line if entry[3].place is place]
                heapq.heapify(line)

    def check_integrity(self) -> None:
        here = {
            id(entry[3]): entry[3]
            for place, line in self._lines.items()
            for entry in line
            if entry[3].place is place
        }
        assert self.length == len(here), f"{self.length} counted, {len(here)} there"
        for place, counted in self.work_s.items():
            work = sum(w.work_s for w in here.values() if w.place is place)
            assert math.isclose(work, counted, abs_tol=1e-6), f"{place}: {work}, {counted} counted"


class _Class:
    """The tenants of one class."""

    def __init__(self, *, background: bool) -> None:
        self.background = background
        self.tenants: Sharing[str, _Tenant] = Sharing()
        self.work_s = 0.0
        self.length = 0


class FairQueues:
    def __init__(self) -> None:
        self._classes: dict[str, _Class] = {}
        self._bands: dict[bool, Sharing[str, _Class]] = {False: Sharing(), True: Sharing()}
        self._order = itertools.count()
        self._length = 0
        self._ends: list[tuple[float, int, Waiting]] = []  # heaps: by give_up_at,
        self._starts: list[tuple[float, int, Waiting]] = []  # and by start_by

    def __len__(self) -> int:
        return self._length

    def add(self, waiting: Waiting) -> None:
        of_class = self._class_of(waiting)
        tenant = of_class.tenants.get(waiting.flow.tenant) or _Tenant(waiting.arrived)
        tenant.offered.add(waiting.work_s, waiting.arrived)
        if not tenant.length:
            of_class.tenants.begin(waiting.flow.tenant, tenant, waiting.tenant_weight)
        if not of_class.length:
            band = self._bands[of_class.background]
            band.begin(waiting.flow.slo_class, of_class, waiting.weight)
        tenant.length += 1
        of_class.length += 1
        self._length += 1
        of_class.work_s += waiting.work_s
        tenant.put(waiting, Place.ON_TIME, next(self._order))
        heapq.heappush(self._ends, (waiting.give_up_at, next(self._order), waiting))
        if waiting.start_by < math.inf:
            heapq.heappush(self._starts, (waiting.start_by, next(self._order), waiting))

    def demote(self, now: float) -> list[Waiting]:
        """Those that have become late since the last call."""
        late = []
        while self._starts and self._starts[0][0] < now:
            *_, waiting = heapq.heappop(self._starts)
            if waiting.place is not Place.ON_TIME:
                continue
            tenant = self._tenant_of(waiting)
            tenant.work_s[Place.ON_TIME] -= waiting.work_s
            tenant.put(waiting, Place.LATE, next(self._order))
            late.append(waiting)
        return late

    def next(self, *, background: bool) -> Waiting | None:
        """Whose turn it is in this band, if anybody waits there. grant() takes him out."""
        of_class = self._bands[background].first()
        if of_class is None:
            return None
        tenant = of_class.tenants.first()
        assert tenant is not None, "a class waits without a tenant"
        return tenant.first()

    def grant(self, waiting: Waiting, now: float) -> None:
        """He goes; his tenant and his class pay for his work."""
        of_class, tenant = self._classes[waiting.flow.slo_class], self._tenant_of(waiting)
        if now > waiting.arrived or tenant.length > 1:
            on_time = waiting.place is Place.ON_TIME
            tenant.late.granted(waiting.work_s, now, on_time=on_time)
        of_class.tenants.charge(waiting.flow.tenant, waiting.work_s)
        self._bands[of_class.background].charge(waiting.flow.slo_class, waiting.work_s)
        self.remove(waiting)

    def remove(self, waiting: Waiting) -> None:
        """He leaves the line without having been served; idempotent."""
        if waiting.place is Place.OUT:
            return
        of_class, tenant = self._classes[waiting.flow.slo_class], self._tenant_of(waiting)
        tenant.work_s[waiting.place] -= waiting.work_s
        of_class.work_s -= waiting.work_s
        waiting.place = Place.OUT
        tenant.length -= 1
        of_class.length -= 1
        self._length -= 1
        if not tenant.length:
            of_class.tenants.end(waiting.flow.tenant)
        if not of_class.length:
            of_class.work_s = 0.0  # and not what is left of rounding
            self._bands[of_class.background].end(waiting.flow.slo_class)
        tenant.tidy()
        for heap in (self._ends, self._starts):
            if mostly_dead(heap, self._length):
                heap[:] = [entry for entry in heap if entry[2].place is not Place.OUT]
                heapq.heapify(heap)

    def over(self, now: float) -> list[Waiting]:
        """Those who give up now; each is told once, and is still in line."""
        found = []
        while self._ends and self._ends[0][0] <= now:
            *_, waiting = heapq.heappop(self._ends)
            if waiting.place is not Place.OUT:
                found.append(waiting)
        return found

    def wait_s(
        self, waiting: Waiting, servers: float, spare: float, prior_s: float, now: float
    ) -> float:
        """How long `waiting` (in line or not yet) will wait: with so many replicas at work, `spare`
        of them for those who are late. `prior_s`: of LateShare."""
        tenant, own_spare = self._known(waiting), servers * self._part(waiting)
        if tenant is not None:
            left = tenant.late.part(prior_s) * own_spare
            own_spare = max(left, own_spare - tenant.offered.per_s(now))
        return self._estimate_s(waiting, servers, spare, own_spare, now)

    def lasting_s(self, waiting: Waiting, servers: float, spare: float, now: float) -> float:
        """The same, where all that arrives goes before him: `spare` of the replicas are not taken
        by it."""
        tenant = self._known(waiting)
        offered = 0.0 if tenant is None else tenant.offered.per_s(now)
        own_spare = servers * self._part(waiting) - offered
        return self._estimate_s(waiting, servers, spare, own_spare, now)

    def _estimate_s(
        self, waiting: Waiting, servers: float, spare: float, own_spare: float, now: float
    ) -> float:
        """`own_spare`: of his share, what his tenant's new ones leave to him."""
        everything, tenant = self.before_s(waiting), self._known(waiting)
        on_time = own = 0.0
        if tenant is not None:
            on_time, own = tenant.work_s[Place.ON_TIME], sum(tenant.work_s.values())
        if waiting.place is not Place.LATE:
            soon = everything / servers
            if not waiting.background:
                # Others take turns with him, so he waits for no more than his share allows.
                soon = min(soon, on_time / (servers * self._part(waiting)))
            if now + soon <= waiting.start_by:
                return soon
        if waiting.background or own_spare <= 0:
            return everything / spare
        return min(everything / spare, own / own_spare)

    def before_s(self, waiting: Waiting) -> float:
        """Work in line that may go before him."""
        return sum(
            of_class.work_s
            for of_class in self._classes.values()
            if of_class.background <= waiting.background
        )

    def check_integrity(self) -> None:
        """Raise AssertionError unless counts and sums say what the lines hold."""
        assert self._length == sum(each.length for each in self._classes.values())
        for each in self._classes.values():
            tenants = each.tenants.values()
            assert each.length == sum(tenant.length for tenant in tenants)
            work = sum(sum(tenant.work_s.values()) for tenant in tenants)
            assert math.isclose(work, each.work_s, abs_tol=1e-6), (work, each.work_s)
            for tenant in tenants:
                tenant.check_integrity()

    def _class_of(self, waiting: Waiting) -> _Class:
        name = waiting.flow.slo_class
        found = self._classes.get(name)
        if found is None or (found.background is not waiting.background and not found.length):
            # nobody of it waits who came under other rules
            found = self._classes[name] = _Class(background=waiting.background)
        return found

    def _tenant_of(self, waiting: Waiting) -> _Tenant:
        tenant = self._classes[waiting.flow.slo_class].tenants.get(waiting.flow.tenant)
        assert tenant is not None, f"{waiting.flow} is in line and not known"
        return tenant

    def _known(self, waiting: Waiting) -> _Tenant | None:
        of_class = self._classes.get(waiting.flow.slo_class)
        return None if of_class is None else of_class.tenants.get(waiting.flow.tenant)

    def _part(self, waiting: Waiting) -> float:
        """Of the replicas, which is his while those wait who wait now."""
        slo_class, tenant = waiting.flow
        bands = [
            band for background, band in self._bands.items() if background <= waiting.background
        ]
        there = any(band.waits(slo_class) for band in bands)
        of_class = _fraction(waiting.weight, sum(band.weight for band in bands), there=there)
        known = self._classes.get(slo_class)
        if known is None:
            return of_class
        there = known.tenants.waits(tenant)
        return of_class * _fraction(waiting.tenant_weight, known.tenants.weight, there=there)


def _fraction(weight: float, total: float, *, there: bool) -> float:
    """`weight` of `total`, in which it is counted if it is `there`."""
    return min(1.0, weight / (total if there else total + weight))


def mostly_dead(entries: Sequence[object], alive: int) -> bool:
    """Who left stays in a heap until it is on top, unless there are too many of them."""
    return len(entries) > 2 * alive + 64
