"""Waiting in front of several servers."""

from __future__ import annotations

import math


def erlang_c(servers: int, load: float) -> float:
    """Probability that who comes must wait, M/M/c; `load`: servers that would be busy. 1 where
    that is all of them or more."""
    if load <= 0:
        return 0.0
    if load >= servers:
        return 1.0
    blocked = 1.0  # Erlang B, by its recursion: no factorials
    for count in range(1, servers + 1):
        blocked = load * blocked / (count + load * blocked)
    busy = load / servers
    return blocked / (1.0 - busy * (1.0 - blocked))


def halfin_whitt(servers: int, load: float) -> float:
    """erlang_c of many servers, in constant time."""
    if load <= 0:
        return 0.0
    if load >= servers:
        return 1.0
    spare = (1.0 - load / servers) * math.sqrt(servers)
    density = math.exp(-spare * spare / 2.0) / math.sqrt(2.0 * math.pi)
    return density / (density + spare * normal_cdf(spare))


class Wait:
    """Of one that comes to G/G/c, first come, first served (Allen-Cunneen; Kingman for one server):
    0 with probability 1 - p, else exponential with the mean

        (ca2 + cs2) / 2 * service_s / (servers * (1 - busy))

    `ca2`, `cs2`: squared coefficients of variation of arrivals and of service times.
    """

    MANY = 100  # servers

    def __init__(self, servers: int, rate: float, service_s: float, ca2: float, cs2: float) -> None:
        load = rate * service_s
        self.busy = load / servers if servers else math.inf
        self.stable = self.busy < 1.0
        waits = erlang_c if servers < self.MANY else halfin_whitt
        self.some = waits(servers, load) if servers else 1.0
        self._mean_s = (
            (ca2 + cs2) / 2 * service_s / (servers * (1.0 - self.busy)) if self.stable else math.inf
        )

    def beyond(self, seconds: float) -> float:
        """Probability that it is longer."""
        if not self.stable:
            return 1.0
        if seconds < 0:
            return 1.0
        if self._mean_s <= 0:
            return 0.0
        return self.some * math.exp(-seconds / self._mean_s)

    def quantile(self, part: float) -> float:
        """Seconds that a part `part` does not exceed."""
        if not self.stable:
            return math.inf
        left = 1.0 - part
        return self._mean_s * math.log(self.some / left) if self.some > left > 0 else 0.0


def normal_cdf(value: float) -> float:
    return 0.5 * math.erfc(-value / math.sqrt(2.0))
