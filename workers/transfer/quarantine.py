"""Peers with whom no pair works for now: nobody tries again before their time is over."""

from __future__ import annotations

from dataclasses import dataclass

from workers.core.clock import Clock

FIRST_S = 1.0
LONGEST_S = 30.0


@dataclass(eq=False, slots=True)
class _Record:
    failures: int  # in a row
    until: float


class Quarantine:
    """By replica and incarnation: the time doubles with each failure in a row; a success, and a new
    incarnation, start clean."""

    def __init__(
        self, clock: Clock, *, first_s: float = FIRST_S, longest_s: float = LONGEST_S
    ) -> None:
        self._clock = clock
        self._first_s = first_s
        self._longest_s = longest_s
        self._records: dict[tuple[str, str], _Record] = {}  # by (replica id, incarnation)

    def failed(self, replica: str, incarnation: str) -> None:
        """Failures of what began before the quarantine count as one with the one that began it."""
        self.forget_older(replica, incarnation)
        record = self._records.setdefault((replica, incarnation), _Record(0, 0.0))
        if self._clock.now() < record.until:
            return
        time = min(self._first_s * 2**record.failures, self._longest_s)
        record.failures += 1
        record.until = self._clock.now() + time

    def forget_older(self, replica: str, incarnation: str) -> None:
        """A newer incarnation is there."""
        for key in [key for key in self._records if key[0] == replica and key[1] != incarnation]:
            del self._records[key]

    def succeeded(self, replica: str, incarnation: str) -> None:
        self._records.pop((replica, incarnation), None)

    def left_s(self, replica: str, incarnation: str) -> float:
        record = self._records.get((replica, incarnation))
        return 0.0 if record is None else max(0.0, record.until - self._clock.now())

    def failures(self, replica: str, incarnation: str) -> int:
        """In a row."""
        record = self._records.get((replica, incarnation))
        return 0 if record is None else record.failures

    def inside(self) -> list[tuple[str, str]]:
        """Who is in quarantine now; forgets who has been out for long."""
        now = self._clock.now()
        for key in [k for k, r in self._records.items() if r.until + self._longest_s < now]:
            del self._records[key]
        return [key for key, record in self._records.items() if now < record.until]
