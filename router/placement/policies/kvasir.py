"""Our own policy: the end of this request, and what it costs those that come after it.

    cost = wait + work * (1 + LATER * busy + MEANWHILE * rate * (wait + work / 2))
                + AGAIN * (work - the least work anywhere) + AWAY * work, unless it is at home

`wait` and `work` are predicted seconds. `busy` is the part of the last minutes that the replica
computed: whoever continues this prompt comes back to it and waits for that. `rate` is how many
requests a second it was given: so many arrive during `wait + work / 2` and wait for `work` longer,
unless they go elsewhere, as most can. Work that would be less elsewhere is a second copy of cached
blocks: it takes the place of others that are hit as often. Home is where this conversation was last
prefilled: even if its blocks are gone, that replica remembers them, and keeps them longer now. The
weights were fitted on the first halves of the traces (load_tests/README.md has both halves).
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from dataclasses import dataclass

from router.placement.decision import Candidates, Need
from workers.core.clock import Clock
from workers.core.hashing import BlockId

LATER = 4.0
MEANWHILE = 0.25
AGAIN = 2.0
AWAY = 0.3
CLOSE = 1.01  # costs closer than this are equal; the less busy one is taken
BUSY_S = 300.0  # memory of `busy`
RATE_S = 60.0  # memory of `rate`
FIRST_S = 1.0  # before that nothing is known of either
KEPT = 2  # tallies kept, as a multiple of the candidates
PART = 0.25  # of a prompt that a part of the same conversation has at least
HOMES = 1 << 16  # prompts whose home is remembered, about 250 bytes each


@dataclass(slots=True)
class _Tally:
    """Sums that fade: seconds of work given, and requests given."""

    work_s: float = 0.0
    requests: float = 0.0


class Kvasir:
    """What it remembers of each replica is what this router gave it."""

    def __init__(self, rng: random.Random, clock: Clock) -> None:
        self._rng = rng
        self._clock = clock
        self._began = self._seen = clock.now()
        self._tallies: dict[str, _Tally] = {}
        self._homes: OrderedDict[BlockId, str] = OrderedDict()  # by a prompt's last full block

    def choose(self, need: Need, among: Candidates) -> int:
        self._fade()
        tallies = [self._tally(replica.id) for replica in among.replicas]
        costs = self._costs(among, tallies, self._home(need))
        among.cost_s[:] = costs
        limit = min(costs) * CLOSE
        close = [place for place, cost in enumerate(costs) if cost <= limit]
        chosen = close[0]
        if len(close) > 1:
            idlest = min(tallies[place].work_s for place in close)
            chosen = self._rng.choice([p for p in close if tallies[p].work_s == idlest])
        tallies[chosen].work_s += among.work_s[chosen]
        tallies[chosen].requests += 1.0
        self._settle(need, among.replicas[chosen].id)
        if len(self._tallies) > KEPT * len(among):
            names = {replica.id for replica in among.replicas}
            self._tallies = {name: self._tallies[name] for name in names}
        return chosen

    def _costs(self, among: Candidates, tallies: list[_Tally], home: str | None) -> list[float]:
        age_s = max(FIRST_S, self._seen - self._began)
        busy_s, rate_s = _window(BUSY_S, age_s), _window(RATE_S, age_s)
        least_s = min(among.work_s)
        costs = []
        for own, wait_s, work_s in zip(tallies, among.wait_s, among.work_s, strict=True):
            later = LATER * min(1.0, own.work_s / busy_s)
            meanwhile = MEANWHILE * own.requests / rate_s * (wait_s + work_s / 2)
            again = AGAIN * (work_s - least_s)
            costs.append(wait_s + work_s * (1 + later + meanwhile) + again)
        if home is not None:
            for place, replica in enumerate(among.replicas):
                if replica.id != home:
                    costs[place] += AWAY * among.work_s[place]
        return costs

    def _home(self, need: Need) -> str | None:
        """Of the longest prompt that this one continues, if that is a good part of it: what is
        shorter may be anybody's."""
        homes, least = self._homes, max(1, int(PART * len(need.ids)))
        longest = reversed(need.ids[least:])
        return next((homes[block] for block in longest if block in homes), None)

    def _settle(self, need: Need, replica: str) -> None:
        if need.ids:
            self._homes[need.ids[-1]] = replica
            self._homes.move_to_end(need.ids[-1])
            if len(self._homes) > HOMES:
                self._homes.popitem(last=False)

    def _tally(self, name: str) -> _Tally:
        tally = self._tallies.get(name)
        if tally is None:
            tally = self._tallies[name] = _Tally()
        return tally

    def _fade(self) -> None:
        now = self._clock.now()
        work = math.exp((self._seen - now) / BUSY_S)
        requests = math.exp((self._seen - now) / RATE_S)
        self._seen = now
        for tally in self._tallies.values():
            tally.work_s *= work
            tally.requests *= requests


def _window(memory_s: float, age_s: float) -> float:
    """Seconds that a fading sum of `age_s` stands for."""
    return memory_s * -math.expm1(-age_s / memory_s)
