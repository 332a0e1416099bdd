"""Ray Serve's application-level autoscaling policy: what the plan orders, bounded by Serve.

Serve calls it in its controller many times a second, so it never waits: a thread reads the plan.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Mapping
from typing import Any

from cluster.redis_server import read_orders
from workers.wire.redis_endpoint import RedisEndpoint

READ_EVERY_S = 0.5


class PlanPolicy:
    """Called with {deployment id: its context}; deployments are named as their pools. Without an
    order for a pool it stays as it is; a plan that is only advice orders nothing."""

    def __init__(self, redis: Mapping[str, Any], cluster: str) -> None:
        """`redis`: a RedisEndpoint as JSON."""
        at = RedisEndpoint.model_validate(redis)
        self.wanted: Mapping[str, int] = {}
        threading.Thread(target=_follow, args=(weakref.ref(self), at, cluster), daemon=True).start()

    def __call__(self, contexts: Mapping[Any, Any]) -> tuple[dict[Any, int], dict[Any, Any]]:
        """{deployment id: replicas}, and no state of our own."""
        targets = {
            deployment: self.wanted.get(deployment.name, context.target_num_replicas)
            for deployment, context in contexts.items()
        }
        return targets, {}


def _follow(policy_of: weakref.ref[PlanPolicy], at: RedisEndpoint, cluster: str) -> None:
    """Ends when the policy is gone: Serve makes a new one with each config."""
    asyncio.run(_read(policy_of, at, cluster))


async def _read(policy_of: weakref.ref[PlanPolicy], at: RedisEndpoint, cluster: str) -> None:
    while policy_of() is not None:
        wanted = await read_orders(at, cluster)
        policy = policy_of()
        if wanted is not None and policy is not None:
            policy.wanted = wanted
        del policy
        await asyncio.sleep(READ_EVERY_S)
