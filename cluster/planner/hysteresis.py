"""What is up stays up, until it is clear that it is not needed."""

from __future__ import annotations

from collections import deque

from cluster.planner.needs import Servers


class Settled:
    """At least what was asked for within the last `settle_s`, of what is there."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._asked: deque[tuple[float, Servers]] = deque()

    def size(self, needed: Servers, kept: Servers, have: Servers, now: float) -> Servers:
        """`needed` where more is, less than `have` only where `kept` is less, and was all the
        time."""
        asked = Servers(*(_between(n, k, h) for n, k, h in zip(needed, kept, have, strict=True)))
        self._asked.append((now, asked))
        while self._asked[0][0] < now - self._settle_s:
            self._asked.popleft()
        most = [max(sizes) for sizes in zip(*(each for _, each in self._asked), strict=True)]
        return Servers(*(max(a, min(h, m)) for a, h, m in zip(asked, have, most, strict=True)))


def _between(needed: int, kept: int, have: int) -> int:
    return max(needed, min(have, max(needed, kept)))
