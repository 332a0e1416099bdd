"""What the planner is set to."""

from __future__ import annotations

from dataclasses import dataclass, field

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class ActionCosts:
    """In seconds of a replica. A start is paid for while nothing is served."""

    start: float = 60.0
    stop: float = 10.0
    flip: float = 5.0


@dataclass(frozen=True, slots=True)
class Options:
    """`attainment`: part of requests to be within their targets. `budget`: resources over all
    pools, None = what the bounds allow. `settle_s`: nothing is stopped that was wanted so recently;
    `band`: of the load, more than a smaller size must carry before anything is stopped. `keep_s`:
    for how long a choice is assumed to stand, when actions are weighed against it. `idle_s`:
    without a request, until a pool may go to zero. `season_s`: None = only what the load's own
    history shows."""

    attainment: float = 0.95
    forecast: bool = True
    season_s: float | None = DAY_S
    budget: float | None = None
    costs: ActionCosts = field(default_factory=ActionCosts)
    settle_s: float = 60.0
    band: float = 0.03
    keep_s: float = 600.0
    idle_s: float = 300.0
    drain_s: float = 30.0  # in which a queue is to be worked off
    unfitted: float = 0.25  # more load is assumed for a pool of whose steps none was measured
