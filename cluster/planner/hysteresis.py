"""What is up stays up, until it is clear that it is not needed."""

from __future__ import annotations

from collections import deque

from cluster.planner.needs import Servers

SOON_S = 600.0  # a stop of one so soon after a start, at
ALIKE = 0.94  # of its load at least, would follow noise


class Settled:
    """At least what was asked for within the last `settle_s`, of what is there; and one that was
    just started, while the load is much the same."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._asked: deque[tuple[float, Servers]] = deque()
        self._started: list[tuple[float, float] | None] = [None, None]  # when, at which load

    def size(
        self,
        needed: Servers,
        kept: Servers,
        have: Servers,
        now: float,
        load: float,
        *,
        sure: bool = False,
    ) -> Servers:
        """`needed` where more is, less than `have` only where `kept` is less, and was all the
        time; at once where what comes is `sure`. `load`: requests a second now."""
        asked = Servers(*(_between(n, k, h) for n, k, h in zip(needed, kept, have, strict=True)))
        self._asked.append((now, asked))
        while self._asked[0][0] < now - self._settle_s:
            self._asked.popleft()
        if sure:
            return asked
        most = [max(sizes) for sizes in zip(*(each for _, each in self._asked), strict=True)]
        sizes = [max(a, min(h, m)) for a, h, m in zip(asked, have, most, strict=True)]
        for place, there in enumerate(have):
            if sizes[place] > there:
                self._started[place] = now, load
            elif sizes[place] == there - 1 and self._fresh(place, now, load):
                sizes[place] = there
        return Servers(*sizes)

    def _fresh(self, place: int, now: float, load: float) -> bool:
        started = self._started[place]
        return started is not None and now - started[0] < SOON_S and load > ALIKE * started[1]


def _between(needed: int, kept: int, have: int) -> int:
    return max(needed, min(have, max(needed, kept)))
