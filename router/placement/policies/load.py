"""Policies that look at load alone, or at nothing."""

from __future__ import annotations

import random

from router.placement.decision import Candidates, Need
from router.placement.policies.policy import least


class Random:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, need: Need, among: Candidates) -> int:
        return self._rng.randrange(len(among))


class RoundRobin:
    """The one after the last, in the order of names, so that it survives who comes and goes."""

    def __init__(self) -> None:
        self._last = ""

    def choose(self, need: Need, among: Candidates) -> int:
        names = [replica.id for replica in among.replicas]
        self._last = min((name for name in names if name > self._last), default=min(names))
        return names.index(self._last)


class LeastRequests:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, need: Need, among: Candidates) -> int:
        return least([replica.num_seqs for replica in among.replicas], self._rng)


class LeastWork:
    """Where the queue ends soonest."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, need: Need, among: Candidates) -> int:
        return least(among.wait_s, self._rng)
