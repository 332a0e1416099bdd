"""Brings what runs on Ray to what the config says, without a request being dropped.

New versions of replicas start before old ones drain, as many at a time as there is room for. Bounds
and service classes change in place. A changed router is replaced: only one can have its ports.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.backends.ray_apps import (
    App,
    planner_app,
    planner_name,
    pools_app,
    pools_name,
    router_app,
    router_name,
)
from cluster.backends.ray_cluster import Applications
from cluster.backends.ray_resources import (
    Ask,
    Resources,
    asks,
    check_resources,
    growth,
    unplaced,
)
from cluster.config import ClusterConfig
from workers.wire.redis_endpoint import RedisEndpoint

NO_ROOM = "no room for a second version: replicas are replaced one after the other"
DRAIN_MARGIN_S = 30.0  # beside the grace: Serve looks, kills and counts


@dataclass(frozen=True, slots=True)
class Deployment:
    """`model`: as nodes resolve it; `model_dir`: the same checkpoint here. `host`: where workers
    listen, None = on the address of their node."""

    config: ClusterConfig
    model: str
    model_dir: Path
    redis: RedisEndpoint
    host: str | None

    def router(self) -> App:
        return router_app(self.config, self.model, self.model_dir, self.redis)

    def planner(self) -> App | None:
        if self.config.planner.mode == "off":
            return None
        return planner_app(self.config, self.model, self.redis)

    def pools(self, surge: int) -> App:
        config, model = self.config, self.model
        return pools_app(config, model, self.model_dir, self.redis, self.host, surge)


async def deploy(wanted: Deployment, apps: Applications, say: Callable[[str], None]) -> None:
    """Returns when all of it runs. Raises ConfigError where that cannot be."""
    needs, there = asks(wanted.config), await apps.nodes()
    check_resources(needs, there)
    if short := growth(wanted.config, there):
        say(short)
    surge = surge_percent(needs, there)
    router, pools = wanted.router(), wanted.pools(surge)
    applied = await apps.there()
    old_router, old_pools = applied.get(router["name"]), applied.get(pools["name"])
    if old_pools is not None and old_pools["args"] != pools["args"]:
        say("new replicas start, then the old ones drain" if surge else NO_ROOM)
    if old_router is not None and _without_path(old_router) == _without_path(router):
        router["args"] = old_router["args"]  # an equal tokenizer, wherever it lies
    elif old_router is not None:
        say("the router is replaced: its ports do not answer for a moment")
    planner, planner_id = wanted.planner(), planner_name(wanted.config.name)
    gone = [planner_id] if planner is None and planner_id in applied else []
    await apps.apply([pools, router, *([planner] if planner is not None else [])], without=gone)
    # The planner needs the others, and nobody needs it to be served.
    await apps.wait_running([pools["name"], router["name"]])


async def delete(config: ClusterConfig, apps: Applications) -> bool:
    """The planner first, so that nothing starts any more. Pools drain while the router still
    carries what they had, then it goes too. False: there is nothing of that name."""
    applied = await apps.there()
    names = (planner_name(config.name), pools_name(config.name), router_name(config.name))
    found = [name for name in names if name in applied]
    for name in found:
        await apps.apply([], without=[name])
        await apps.wait_gone([name], config.grace_s + DRAIN_MARGIN_S)
    await apps.close_if_empty()
    return bool(found)


def surge_percent(needs: Sequence[Ask], there: Sequence[Resources]) -> int:
    """Replicas of a new version that may stand beside the old ones: all of them, one of each pool,
    or none."""
    pools = [ask for ask in needs if ask.who != "router"]
    if not unplaced([*needs, *pools], there):
        return 100
    one = [dataclasses.replace(ask, count=ask.ranks) for ask in pools]
    return 0 if unplaced([*needs, *one], there) else 1


def _without_path(app: App) -> dict[str, object]:
    args = app["args"]
    return args | {"router": {key: v for key, v in args["router"].items() if key != "model"}}
