"""The planner as it runs: it follows what is offered and who is there, plans every few seconds,
and publishes while it has the lease.

Several may run. Each plans, so that whoever takes over knows the load; one publishes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import asdict

from cluster.autoscaler.applier import Applier
from cluster.autoscaler.metrics import PlannerMetrics
from cluster.autoscaler.past import Past
from cluster.autoscaler.published import Mode, Published, Seen, orders
from cluster.autoscaler.routers import There
from cluster.autoscaler.sight import Sight
from cluster.autoscaler.store import Store
from cluster.planner.plan import Plan
from cluster.planner.planner import Planner
from cluster.planner.search import Pools
from cluster.planner.signals import PoolState
from workers.core.clock import Clock, unix_time
from workers.core.errors import KvasirError, Unavailable

log = logging.getLogger("kvasir.planner")

LOOK_S = 1.0  # at who is there, at the lease and at what people ask for


class Autoscaler:
    def __init__(
        self,
        planner: Planner,
        sight: Sight,
        store: Store,
        metrics: PlannerMetrics,
        clock: Clock,
        applier: Applier | None = None,
        *,
        mode: Mode,
        every_s: float,
        first: Mapping[str, int],
    ) -> None:
        """`first`: replicas that each pool starts with."""
        self.leads = False
        self._planner = planner
        self._sight = sight
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._applier = applier
        self._mode = mode
        self._every_s = every_s
        self._first = first
        # Steps of the wall clock are no time that passed.
        self._unix = unix_time() - clock.now()
        self._began = clock.now()
        self._past = Past()
        self._plan: Published | None = None
        self._orders: dict[str, int] = {}
        self._applied: Published | None = None
        self._redis_up = True

    async def run(self) -> None:
        """Until cancelled; then another one may lead at once."""
        try:
            await self._recall()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._sight.routers.run())
                tasks.create_task(self._keep_roles())
                if self._applier is not None:
                    tasks.create_task(self._applier.run())
                await self._follow()
        finally:
            await self._resign()

    async def _follow(self) -> None:
        began = self._clock.now()
        while True:
            await asyncio.sleep(LOOK_S)
            now = self._clock.now()
            await self._look(now)
            if not self._sight.routers.heard_since(began):
                # Half of what is offered would look like half of the load.
                self._sight.offered.take({})
                began = now
            elif now - began >= self._every_s:
                try:
                    there = await self._sight.routers.there()
                except Unavailable as error:
                    log.warning("no plan: %s", error.message)
                    continue
                await self._make_plan(now, now - began, there)
                began = now

    # -- between two plans ------------------------------------------------------------------------

    async def _look(self, now: float) -> None:
        leads = False
        try:
            leads = await self._store.lead()
            self._plan, by_hand = await self._store.read()
            self._orders = orders(self._plan, by_hand)
            self._note_redis(None)
        except Unavailable as error:
            self._note_redis(error)
        if leads != self.leads:
            log.info("this planner publishes" if leads else "this planner does not publish")
        self.leads = leads
        self._metrics.publishes(leads)
        for pool, took_s in self._sight.look(self._orders, now).items():
            log.info("%s: %s s until there", pool, ", ".join(f"{s:.1f}" for s in took_s))
            if leads:
                await self._remember(self._store.remember_starts(pool, took_s))
        await self._apply()

    async def _apply(self) -> None:
        """What stands in Redis, once; again where that could not be."""
        if self._applier is None or self._plan is None or not self._orders:
            return
        ordered = self._plan.model_copy(update={"mode": "apply", "pools": self._orders})
        if ordered == self._applied:
            return
        try:
            await self._applier.apply(ordered)
            self._applied = ordered
        except Unavailable as error:
            log.warning("the plan is not applied: %s", error.message)

    async def _keep_roles(self) -> None:
        """As the newest plan has them, also of replicas that came since."""
        while True:
            await asyncio.sleep(LOOK_S)
            plan = self._plan
            if not self.leads or self._mode != "apply" or plan is None or plan.mode != "apply":
                continue
            for replica, role in self._sight.flips(plan):
                try:
                    await self._sight.routers.set_role(replica, role)
                except KvasirError as error:
                    log.warning("%s is not made %s: %s", replica, role, error.message)
                    break
                log.info("%s is made %s", replica, role)
                pool = self._sight.pool_of(replica)
                if pool is not None:
                    self._metrics.ordered(pool, "flip")

    # -- a plan -----------------------------------------------------------------------------------

    async def _make_plan(self, now: float, interval_s: float, there: There) -> None:
        at = self._unix + now
        signals = self._sight.signals(interval_s, there)
        state = self._sight.state(now)
        self._planner.pools = Pools(self._sight.specs, self._planner.options)
        plan = self._planner.plan(signals, state, at)
        told = self._told(plan, state, settling=now - self._began < self._planner.options.settle_s)
        self._metrics.planned(plan, told)
        rate = self._past.note(signals.arrivals, interval_s, at)
        if not self.leads:
            return
        try:
            published = await self._store.publish(told)
        except Unavailable as error:
            return self._note_redis(error)
        if published and rate is not None:
            await self._remember(self._store.remember_rate(*rate))
        if published and self._mode == "apply":
            self._note_actions(told, state)

    def _told(self, plan: Plan, state: Mapping[str, PoolState], *, settling: bool) -> Published:
        """Who has only just begun to look knows too little to take anything away."""
        pools = {each.name: each.replicas for each in plan.pools}
        prefill = {
            spec.name: plan.pool(spec.name).as_prefill
            for spec in self._planner.pools
            if spec.role == "flex"
        }
        text = plan.as_json()
        known = {n: max(state[n].coming, self._orders.get(n, self._first[n])) for n in pools}
        held = {name for name, n in pools.items() if settling and n < known[name]}
        if held:
            why = f"{', '.join(sorted(held))}: nothing is stopped so soon after the planner's start"
            text["reasons"] = [*text["reasons"], why]
            pools |= {name: known[name] for name in held}
            prefill |= {name: state[name].as_prefill for name in held & prefill.keys()}
        seen = {name: _seen(each) for name, each in state.items()}
        return Published(
            at=plan.at,
            mode=self._mode,
            pools=pools,
            as_prefill=prefill,
            by=self._store.me,
            metrics=self._store.metrics,
            every_s=self._every_s,
            seen=seen,
            plan=text,
        )

    def _note_actions(self, told: Published, state: Mapping[str, PoolState]) -> None:
        for pool, wanted in told.pools.items():
            more = wanted - state[pool].coming
            if more:
                self._metrics.ordered(pool, "start" if more > 0 else "stop", abs(more))
                log.info("%s: %d wanted, %d there or coming", pool, wanted, state[pool].coming)

    # -- what is kept in Redis --------------------------------------------------------------------

    async def _recall(self) -> None:
        """What planners before us learnt; without Redis we begin anew."""
        try:
            self._planner.learn(await self._store.past())
            for pool, took_s in (await self._store.starts()).items():
                self._sight.watched.took(pool, took_s)
        except Unavailable as error:
            self._note_redis(error)

    async def _resign(self) -> None:
        if self.leads:
            try:
                await self._store.resign()
            except Unavailable:
                log.info("the lease runs out by itself")

    async def _remember(self, writing: Awaitable[None]) -> None:
        try:
            await writing
        except Unavailable as error:
            self._note_redis(error)

    def _note_redis(self, error: Unavailable | None) -> None:
        up = error is None
        if up is not self._redis_up:
            log.warning("Redis is back" if up else f"no plan is published: {error}")
        self._redis_up = up


def _seen(state: PoolState) -> Seen:
    known = asdict(state)
    return Seen(**{name: known[name] for name in Seen.model_fields})
