"""What happened to replicas lately: they came, changed, went down, were forgotten."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from router.replica import Replica
from workers.core.clock import unix_time
from workers.wire import worker_pb2 as worker

KEPT = 100
DOWN = "down"


class PoolEvent(NamedTuple):
    number: int  # +1 with each: what a reader has seen already
    at: float  # seconds since 1970
    replica: str
    what: str


class PoolEvents:
    """A PoolListener."""

    def __init__(self) -> None:
        self._events: deque[PoolEvent] = deque(maxlen=KEPT)
        self._count = 0
        self._known: dict[str, str] = {}  # replica -> its state as told last

    def told(self) -> Iterator[dict[str, Any]]:
        """Newest first."""
        return (event._asdict() for event in reversed(self._events))

    def is_down(self, replica: str) -> bool:
        """It was there and died. The pool calls it again and says `connecting` meanwhile."""
        return self._known.get(replica) == DOWN

    def reported(self, replica: Replica, load: worker.LoadReport) -> None:
        what = f"is {replica.state}, {replica.role}"
        self._note(replica.id, what, what)

    def lost(self, replica: Replica) -> None:
        """Once, however often it is called in vain after that."""
        if replica.id in self._known:  # else it never was there
            why = replica.story[-1].partition(": ")[2] if replica.story else ""
            self._note(replica.id, DOWN, f"is down: {why}" if why else "is down")

    def forgotten(self, replica: Replica) -> None:
        if self._known.pop(replica.id, None) is not None:
            self._add(replica.id, "is gone: its lease has run out")

    def _note(self, replica: str, state: str, what: str) -> None:
        if self._known.get(replica) != state:
            self._known[replica] = state
            self._add(replica, what)

    def _add(self, replica: str, what: str) -> None:
        self._count += 1
        self._events.append(PoolEvent(self._count, unix_time(), replica, what))
