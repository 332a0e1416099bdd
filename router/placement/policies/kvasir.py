"""Our own policy: the end of this request, and what it costs those that come after it.

    cost = wait + work * (1 + LATER * busy + MEANWHILE * rate * (wait + work / 2))
                + AGAIN * work that is cached elsewhere + AWAY * work, unless it is at home
                + after

`wait` and `work` are predicted seconds. `busy` is the part of the last minutes that the replica
computed: whoever continues this prompt comes back to it and waits for that. `rate` is how many
requests a second it was given: so many arrive during `wait + work / 2` and wait for `work` longer,
unless they go elsewhere, as most can. Work that is cached elsewhere makes a second copy of
blocks: it takes the place of others that are hit as often. `after`: what the way it goes on costs
(ways.py). Home is where this conversation was last
prefilled: even if its blocks are gone, that replica remembers them, and keeps them longer now. The
weights were fitted on the first halves of the traces (load_tests/README.md has both halves).
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from dataclasses import dataclass

from router.placement.decision import Candidates, Need
from router.replica import Replica
from workers.core.clock import Clock
from workers.core.hashing import BlockId

LATER = 4.0
MEANWHILE = 0.25
AGAIN = 2.0
AWAY = 0.3
CLOSE = 1.01  # costs closer than this are equal; the less busy one is taken
BUSY_S = 300.0  # memory of `busy`
RATE_S = 60.0  # memory of `rate`
EPOCH_S = 600.0  # after which sums are brought up to date, so that they stay small
FIRST_S = 1.0  # before that nothing is known of either
FADED_S = 1e-3  # of work; who was given so little is forgotten when sums are brought up to date
PART = 0.25  # of a prompt that a part of the same conversation has at least
HOMES = 1 << 16  # prompts whose home is remembered, about 250 bytes each


@dataclass(slots=True)
class _Tally:
    """Sums that fade: seconds of work given, and requests given, as they stood at `_epoch`."""

    work_s: float = 0.0
    requests: float = 0.0


class Kvasir:
    """What it remembers of each replica is what this router gave it."""

    def __init__(self, rng: random.Random, clock: Clock) -> None:
        self._rng = rng
        self._clock = clock
        self._began = self._epoch = clock.now()
        self._tallies: dict[str, _Tally] = {}
        self._homes: OrderedDict[BlockId, str] = OrderedDict()  # by a prompt's last full block

    def choose(self, need: Need, among: Candidates) -> int:
        now = self._clock.now()
        if now - self._epoch > EPOCH_S:
            self._fade(now)
        known = self._tallies.get
        tallies = [known(replica.id) or self._meet(replica) for replica in among.replicas]
        costs = self._costs(need, among, tallies, now)
        among.cost_s[:] = costs
        limit = min(costs) * CLOSE
        close = [place for place, cost in enumerate(costs) if cost <= limit]
        chosen = close[0]
        if len(close) > 1:
            idlest = min(tallies[place].work_s for place in close)
            chosen = self._rng.choice([p for p in close if tallies[p].work_s == idlest])
        since = now - self._epoch
        tallies[chosen].work_s += among.work_s[chosen] * math.exp(since / BUSY_S)
        tallies[chosen].requests += math.exp(since / RATE_S)
        self._settle(need, among.replicas[chosen].id)
        return chosen

    def _costs(
        self, need: Need, among: Candidates, tallies: list[_Tally], now: float
    ) -> list[float]:
        age_s, since = max(FIRST_S, now - self._began), now - self._epoch
        busy = LATER * math.exp(-since / BUSY_S) / _window(BUSY_S, age_s)
        rate = MEANWHILE * math.exp(-since / RATE_S) / _window(RATE_S, age_s)
        most, tokens, home = max(among.cached), need.num_tokens, self._home(need)
        costs = []
        for replica, own, cached, wait_s, work_s in zip(
            among.replicas, tallies, among.cached, among.wait_s, among.work_s, strict=True
        ):
            later = busy * own.work_s
            if later > LATER:
                later = LATER
            again = AGAIN * (most - cached) / (tokens - cached) if cached < most else 0.0
            meanwhile = rate * own.requests * (wait_s + work_s / 2)
            cost = wait_s + work_s * (1.0 + later + meanwhile + again)
            if home is not None and replica.id != home:
                cost += AWAY * work_s
            costs.append(cost)
        if among.ways:
            return [cost + way.after_s for cost, way in zip(costs, among.ways, strict=True)]
        return costs

    def _home(self, need: Need) -> str | None:
        """Of the longest prompt that this one continues, if that is a good part of it: what is
        shorter may be anybody's."""
        homes, least = self._homes, max(1, int(PART * len(need.ids)))
        for block in reversed(need.ids[least:]):
            if block in homes:
                return homes[block]
        return None

    def _settle(self, need: Need, replica: str) -> None:
        if need.ids:
            self._homes[need.ids[-1]] = replica
            self._homes.move_to_end(need.ids[-1])
            if len(self._homes) > HOMES:
                self._homes.popitem(last=False)

    def _meet(self, replica: Replica) -> _Tally:
        return self._tallies.setdefault(replica.id, _Tally())

    def _fade(self, now: float) -> None:
        """Between two of these, what is added counts more the later it comes: so one decision need
        not touch every tally."""
        since = self._epoch - now
        self._epoch = now
        work, requests = math.exp(since / BUSY_S), math.exp(since / RATE_S)
        for tally in self._tallies.values():
            tally.work_s *= work
            tally.requests *= requests
        # By what is left, not by who stands here: of many replicas each decision weighs a few.
        self._tallies = {n: each for n, each in self._tallies.items() if each.work_s > FADED_S}


def _window(memory_s: float, age_s: float) -> float:
    """Seconds that a fading sum of `age_s` stands for."""
    return memory_s * -math.expm1(-age_s / memory_s)
