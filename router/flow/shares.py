"""Start-time fair queueing (Goyal, Vin, Cheng 1996) among those who wait, each with a weight."""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

CREDIT_S = 1.0  # work over weight: so much of a share that was left unused may be caught up on


@dataclass(eq=False, slots=True)
class _Member(Generic[V]):
    """`start`: virtual time of its next grant. `entry`: its place in the heaps, older ones are
    void."""

    value: V
    weight: float = 1.0
    start: float = -math.inf
    waits: bool = False
    entry: int = 0


class Sharing(Generic[K, V]):
    """Members begin and end to wait. Who is away, and has paid for what he had, is forgotten."""

    def __init__(self) -> None:
        self.weight = 0.0  # of those that wait
        self._members: dict[K, _Member[V]] = {}
        self._num_waiting = 0
        self._turns: list[tuple[float, int, K]] = []  # a heap by start, of those that wait
        self._away: list[tuple[float, int, K]] = []  # the same, of those that do not
        self._order = itertools.count()
        self._virtual = 0.0

    def get(self, key: K) -> V | None:
        found = self._members.get(key)
        return None if found is None else found.value

    def waits(self, key: K) -> bool:
        found = self._members.get(key)
        return found is not None and found.waits

    def values(self) -> list[V]:
        return [member.value for member in self._members.values()]

    def begin(self, key: K, value: V, weight: float) -> None:
        """He waits from now on. Who was away has CREDIT_S to catch up on, no more."""
        member = self._members.get(key)
        if member is None:
            member = self._members[key] = _Member(value)
        member.weight = weight
        member.start = max(member.start, self._virtual - CREDIT_S)
        member.waits = True
        self._num_waiting += 1
        self.weight += weight
        self._push(self._turns, key, member)

    def first(self) -> V | None:
        """Whose turn it is; among equals, who began to wait first."""
        while self._turns:
            _, entry, key = self._turns[0]
            member = self._members.get(key)
            if member is not None and member.entry == entry:
                return member.value
            heapq.heappop(self._turns)
        return None

    def charge(self, key: K, work_s: float) -> None:
        """He was granted so much. Virtual time goes on with whatever is granted: else those who
        come anew would for ever be before who was here already."""
        member = self._members[key]
        self._virtual = max(self._virtual + work_s / self.weight, member.start)
        member.start += work_s / member.weight
        self._push(self._turns, key, member)
        self._forget()

    def end(self, key: K) -> None:
        """Nothing of him waits any more."""
        member = self._members[key]
        member.waits = False
        self._num_waiting -= 1
        self.weight = self.weight - member.weight if self._num_waiting else 0.0
        self._push(self._away, key, member)
        if not self._num_waiting:  # nobody is kept from anything: all have paid
            self._members.clear()
            self._turns.clear()
            self._away.clear()
        self._forget()

    def _push(self, heap: list[tuple[float, int, K]], key: K, member: _Member[V]) -> None:
        member.entry = next(self._order)
        heapq.heappush(heap, (member.start, member.entry, key))

    def _forget(self) -> None:
        while self._away and self._away[0][0] <= self._virtual - CREDIT_S:
            _, entry, key = heapq.heappop(self._away)
            member = self._members.get(key)
            if member is not None and member.entry == entry and not member.waits:
                del self._members[key]
