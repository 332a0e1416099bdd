"""Who brings pools to the sizes of a plan, where that is the planner's own business.

Ray Serve's policy and the supervisor of plain processes read the plan in Redis themselves; on
Kubernetes the planner process applies it.
"""

from __future__ import annotations

from typing import Protocol

from cluster.autoscaler.published import Published


class Applier(Protocol):
    async def apply(self, plan: Published) -> None:
        """Brings each pool of `plan.pools` to that size. Called only with what is to be done: plans
        of mode `apply`, and sizes asked for by hand. It is called in every planner process, also in
        those that do not publish, so several may be told the same: who of them writes is for the
        applier to settle. Raises Unavailable where that cannot be now; then it is called again."""

    async def run(self) -> None:
        """Whatever it needs running beside, until cancelled."""
