"""What the planner said last, and what people asked for instead, as it stands in Redis."""

from __future__ import annotations

import json
from typing import Protocol

from workers.core.clock import unix_time
from workers.core.errors import PlanNotFound, Unavailable
from workers.wire import admin_pb2 as admin


class Plans(Protocol):
    """Both raise Unavailable."""

    async def read_plan(self) -> str | None:
        """The planner's newest document, JSON; None where there is none."""

    async def read_by_hand(self) -> dict[str, str]:
        """Sizes that were asked for, JSON by pool."""


class NoPlans:
    """Of a router without Redis."""

    async def read_plan(self) -> str | None:
        raise Unavailable("this router has no Redis, where a planner would put its plan")

    async def read_by_hand(self) -> dict[str, str]:
        return {}


async def explain_scale(plans: Plans) -> admin.ExplainScaleResponse:
    """Raises PlanNotFound and Unavailable."""
    text, by_hand = await plans.read_plan(), await plans.read_by_hand()
    if text is None and not by_hand:
        raise PlanNotFound
    told = admin.ExplainScaleResponse(json=text or "")
    try:
        if text is not None:
            told.age_s = max(0.0, unix_time() - json.loads(text)["at"])
        for pool, asked in by_hand.items():
            told.by_hand[pool].CopyFrom(admin.ScaledByHand(**json.loads(asked)))
    except (ValueError, TypeError, KeyError) as error:
        raise Unavailable(f"what stands in Redis for the plan cannot be read: {error}") from None
    return told
