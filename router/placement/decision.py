"""What placement is asked, and what it answers with its reasons."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from router.replica import Replica

Phase = Literal["prefill", "decode"]


class Refusal(StrEnum):
    """Why a replica was not considered."""

    ROLE = "role"
    NOT_UP = "not_up"
    DRAINING = "draining"
    KV_ABI = "kv_abi"
    CAPACITY = "capacity"


@dataclass(frozen=True, slots=True)
class Need:
    """One sequence that looks for a replica: to prefill it, and perhaps decode it too, or to redeem
    its ticket and decode it. `cached`: leading tokens that each replica holds. `kv_abi` None = any.
    `avoid`: incarnations that failed it, taken only if there is no other.
    """

    phase: Phase
    num_tokens: int
    cached: Mapping[str, int]
    kv_abi: str | None = None
    avoid: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """Predicted seconds; `wait_s` before its own work, `work_s` of its own. Lower is better."""

    wait_s: float
    work_s: float

    @property
    def total_s(self) -> float:
        return self.wait_s + self.work_s


@dataclass(frozen=True, slots=True)
class Decision:
    """`scores` has every candidate, `refused` every other replica, so that it explains itself."""

    replica: Replica
    cached_tokens: int
    scores: Mapping[str, Score]
    refused: Mapping[str, Refusal]

    def explain(self) -> str:
        parts = [
            f"{name}: wait {score.wait_s * 1e3:.1f} ms + work {score.work_s * 1e3:.1f} ms"
            for name, score in self.scores.items()
        ]
        parts += [f"{name}: refused ({refusal})" for name, refusal in self.refused.items()]
        return f"{self.replica.id} of " + ", ".join(parts)
