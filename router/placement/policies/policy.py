"""The seam of placement: which of those that can take it gets it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from router.placement.decision import Candidates, Need

TIE = 1.001  # costs closer than this are equal; ties are drawn, so that nobody is flooded


class Policy(Protocol):
    def choose(self, need: Need, among: Candidates) -> int:
        """The place in `among` (not empty) of the replica that gets it."""


def least(costs: Sequence[float], rng: random.Random) -> int:
    """The place of the lowest cost; costs are not negative."""
    limit = min(costs) * TIE
    ties = [place for place, cost in enumerate(costs) if cost <= limit]
    return ties[0] if len(ties) == 1 else rng.choice(ties)
