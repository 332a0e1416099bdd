"""What stands in Redis for whoever scales: the planner's newest plan, and what people ask for by
hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt

Mode = Literal["off", "advise", "apply"]


class Seen(BaseModel):
    """A pool when the plan was made. `starting`: seconds since each was asked for."""

    model_config = ConfigDict(frozen=True)

    up: int = 0
    starting: tuple[float, ...] = ()
    draining: int = 0
    as_prefill: int = 0
    fitted: bool = True


class Published(BaseModel):
    """`pools`: replicas wanted, which hold only where `mode` is apply; `as_prefill`: of each flex
    pool. `plan`: cluster/planner/plan.Plan as JSON, with its reasons. `by`: the planner."""

    model_config = ConfigDict(frozen=True)

    at: float  # seconds since 1970
    mode: Mode
    pools: Mapping[str, NonNegativeInt]
    as_prefill: Mapping[str, NonNegativeInt] = {}
    by: str = ""
    metrics: str = ""  # host:port of that planner's /metrics; empty: on every address it has
    every_s: float = 0.0
    seen: Mapping[str, Seen] = {}
    plan: Mapping[str, Any] = {}


class ByHand(BaseModel):
    """A size that somebody asked for, `kvasir scale`."""

    model_config = ConfigDict(frozen=True)

    replicas: NonNegativeInt
    at: float


def orders(plan: Published | None, by_hand: Mapping[str, ByHand]) -> dict[str, int]:
    """The sizes to bring pools to; those without one stay as they are. What was asked for by hand
    holds until the next plan that is to be applied, and for ever where none is."""
    applied = plan if plan is not None and plan.mode == "apply" else None
    wanted = dict(applied.pools) if applied is not None else {}
    for pool, asked in by_hand.items():
        if applied is None or pool not in wanted or asked.at > applied.at:
            wanted[pool] = asked.replicas
    return wanted


def parse_by_hand(fields: Mapping[Any, Any]) -> dict[str, ByHand]:
    """Of the hash in Redis, bytes. Raises ValidationError."""
    return {pool.decode(): ByHand.model_validate_json(text) for pool, text in fields.items()}
