"""What placement is asked, and what it answers with its reasons."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Score:
    """Predicted seconds; `wait_s` before its own work, `work_s` of its own. Lower is better."""

    wait_s: float
    work_s: float

    @property
    def total_s(self) -> float:
        return self.wait_s + self.work_s


@dataclass(frozen=True, slots=True)
class Candidates:
    """Who can take it, column by column: leading tokens that each has cached, and its score.
    `transfer_s`: of `wait_s`; empty where nothing is fetched. `cost_s`: what a policy that weighs
    seconds made of the score, which the lowest of them wins."""

    replicas: Sequence[Replica]
    cached: Sequence[int]
    wait_s: Sequence[float]
    work_s: Sequence[float]
    transfer_s: Sequence[float] = ()
    cost_s: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.replicas)


@dataclass(frozen=True, slots=True)
class Decision:
    """`among` has every candidate, `refused` every other replica, so that it explains itself."""

    replica: Replica
    cached_tokens: int
    among: Candidates
    refused: Mapping[str, Refusal]

    @property
    def scores(self) -> dict[str, Score]:
        """Built when asked for: hardly anybody reads them."""
        among = self.among
        columns = zip(among.replicas, among.wait_s, among.work_s, strict=True)
        return {replica.id: Score(wait_s, work_s) for replica, wait_s, work_s in columns}

    def explain(self) -> str:
        parts = [
            f"{name}: wait {score.wait_s * 1e3:.1f} ms + work {score.work_s * 1e3:.1f} ms"
            for name, score in self.scores.items()
        ]
        parts += [f"{name}: refused ({refusal})" for name, refusal in self.refused.items()]
        return f"{self.replica.id} of " + ", ".join(parts)
