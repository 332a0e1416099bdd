"""What placement is asked, and what it answers with its reasons.

Each decision makes one of each: they are not frozen, as that takes thrice as long. Nobody changes
one that is made, but a policy its `cost_s`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NamedTuple

from router.replica import Replica
from workers.core.hashing import BlockId

Phase = Literal["prefill", "decode"]


class Refusal(StrEnum):
    """Why a replica was not considered."""

    ROLE = "role"
    NOT_UP = "not_up"
    DRAINING = "draining"
    KV_ABI = "kv_abi"
    CAPACITY = "capacity"
    QUARANTINED = "quarantined"  # its pair with the sender failed of late
    FAILED_IT = "failed_it"  # this request, before
    AGGREGATED = "aggregated"  # its decodes wait for prompts, and a decode replica is there


class Targets(NamedTuple):
    """Seconds that a request's class is promised: what is left until its first token, between
    later ones, and between those of the tightest class in use."""

    ttft_s: float = math.inf
    itl_s: float = math.inf
    others_itl_s: float = math.inf


NO_TARGETS = Targets()


@dataclass(slots=True)
class Need:
    """One sequence that looks for a replica: to prefill it, and perhaps decode it too, or to redeem
    its ticket and decode it. `cached`: leading tokens that each replica holds. `kv_abi` None = any.
    `avoid`: incarnations that failed it, taken only if there is no other. `sender`: the replica
    that has the ticket's KV. `ids`: of its full blocks. `session` names its conversation; only a
    policy that hashes it asks.
    """

    phase: Phase
    num_tokens: int
    cached: Mapping[str, int]
    kv_abi: str | None = None
    avoid: Collection[str] = ()
    sender: str | None = None
    ids: Sequence[BlockId] = ()
    session: bytes | None = None
    targets: Targets = NO_TARGETS


class Score(NamedTuple):
    """Predicted seconds; `wait_s` before its own work, `work_s` of its own. Lower is better."""

    wait_s: float
    work_s: float

    @property
    def total_s(self) -> float:
        return self.wait_s + self.work_s


class Way(NamedTuple):
    """What follows a prefill. `alone`: the same replica goes on with it; else `decode` would, by
    what is known now, if anybody is there. `gap_s`: from the first token to the second. `itl_s`:
    mean between later ones. `after_s`: what placement counts for both, and for the tokens of others
    that come later because of it."""

    alone: bool
    decode: Replica | None = None
    gap_s: float = 0.0
    itl_s: float = 0.0
    after_s: float = 0.0


@dataclass(slots=True)
class Candidates:
    """Who can take it, column by column: leading tokens that each has cached, and its score.
    `transfer_s`: of `wait_s`; empty where nothing is fetched. `ways`: how each goes on, where that
    was weighed: then a replica may stand here twice. `cost_s`: what a policy that weighs seconds
    made of the score, which the lowest of them wins."""

    replicas: Sequence[Replica]
    cached: Sequence[int]
    wait_s: Sequence[float]
    work_s: Sequence[float]
    transfer_s: Sequence[float] = ()
    ways: Sequence[Way] = ()
    cost_s: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.replicas)

    def alone(self, place: int) -> bool:
        """Whether that replica would decode what it prefills."""
        if self.ways:
            return self.ways[place].alone
        return self.replicas[place].role == "aggregated"

    def name(self, place: int) -> str:
        """The replica, and whether it is alone where it need not be."""
        replica = self.replicas[place]
        alone = self.alone(place) and replica.role != "aggregated"
        return f"{replica.id} alone" if alone else replica.id


@dataclass(slots=True)
class Decision:
    """`among` has every candidate, `place` is the chosen one's, `refused` has every other replica,
    so that it explains itself."""

    among: Candidates
    place: int
    refused: Mapping[str, Refusal]

    @property
    def replica(self) -> Replica:
        return self.among.replicas[self.place]

    @property
    def cached_tokens(self) -> int:
        return self.among.cached[self.place]

    @property
    def alone(self) -> bool:
        return self.among.alone(self.place)

    @property
    def score(self) -> Score:
        return Score(self.among.wait_s[self.place], self.among.work_s[self.place])

    @property
    def scores(self) -> dict[str, Score]:
        """Built when asked for: hardly anybody reads them."""
        among = self.among
        columns = enumerate(zip(among.wait_s, among.work_s, strict=True))
        return {among.name(place): Score(*seconds) for place, seconds in columns}

    @property
    def counterfactual(self) -> int | None:
        """The place of the best candidate that goes the other way, where both were weighed."""
        among = self.among
        if not among.ways or not among.cost_s:
            return None
        others = (p for p in range(len(among)) if among.alone(p) is not self.alone)
        return min(others, key=among.cost_s.__getitem__, default=None)

    def explain(self) -> str:
        parts = [
            f"{name}: wait {score.wait_s * 1e3:.1f} ms + work {score.work_s * 1e3:.1f} ms"
            for name, score in self.scores.items()
        ]
        parts += [f"{name}: refused ({refusal})" for name, refusal in self.refused.items()]
        return f"{self.among.name(self.place)} of " + ", ".join(parts)
