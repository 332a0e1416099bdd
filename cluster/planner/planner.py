"""plan(signals, state, now): sizes of all pools at once, from what is offered.

1. What requests are like (mix.py) and how many will come while a replica starts (forecast.py).
2. The servers of each role that keep the SLO at that rate (needs.py, over two queueing models).
3. Nothing is given back before it is clear that it is not needed (hysteresis.py).
4. Pools that come to those servers, cheapest with the way there counted (search.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from cluster.planner.cold_start import ColdStarts
from cluster.planner.decode_model import MOST_BUSY, DecodeModel
from cluster.planner.forecast import Ahead, Forecast
from cluster.planner.hysteresis import Settled
from cluster.planner.mix import OVER_S, Mix, Recent
from cluster.planner.needs import Need, Rates, Servers, Sizer
from cluster.planner.options import Options
from cluster.planner.plan import Inputs, Plan, PoolPlan, Prediction, RoleInputs
from cluster.planner.prefill_model import PrefillModel
from cluster.planner.search import Actions, Choice, Pools, actions_to
from cluster.planner.signals import ROLES, PoolSpec, PoolState, Role, Signals, State
from router.flow.classes import SloConfig
from router.latency import LatencyModel

MOST_BACKLOG = 0.5  # of the load, on top of it for the queue's sake
KNOWN = 4.0  # answers that ended, for each that is under way: fewer tell of short ones only
GRID_S = 10.0  # of horizons
IN_PASSING_S = 1.0  # of arrivals that wait are no backlog


class Planner:
    """Deterministic: what it was told is all it knows. Raises ConfigError as Pools does."""

    def __init__(
        self, pools: Sequence[PoolSpec], slo: SloConfig, latency: LatencyModel, options: Options
    ) -> None:
        self.pools = Pools(pools, options)
        self.options = options
        self._slo = slo
        self._latency = latency
        self._recent = Recent()
        self._forecast = Forecast(options.season_s, options.forecast)
        self._cold = ColdStarts()
        self._settled = Settled(options.settle_s)
        self._asked_at: float | None = None

    def learn(self, past: Iterable[tuple[float, float]]) -> None:
        """(time, requests a second) of before, oldest first."""
        self._forecast.learn(past)

    def plan(self, signals: Signals, state: State, now: float) -> Plan:
        mix = self._noted(signals, state, now)
        sizer = self._sizer(mix)
        horizons = {role: self._horizon(role, state, signals.interval_s) for role in ROLES}
        costs = self.options.costs
        hold = costs.start + costs.stop  # seconds for which a stop must last to be worth it
        ahead = {role: self._forecast.ahead(s, hold) for role, s in horizons.items()}
        up, keep = self._rates(signals, state, ahead, mix)
        if self._idle(signals, ahead, now):
            up = keep = Rates(0.0, 0.0)
        need = sizer.need(up, self.options.attainment)
        kept = sizer.need(keep, self.options.attainment)
        have = self.pools.have(state)
        least = self._under_way(signals, sizer, have)
        wanted = self._settled.size(
            _at_least(need.servers, least),
            _at_least(kept.servers, least),
            have,
            now,
            self._forecast.level,
            sure=all(each.sure for each in ahead.values()),
        )
        choice, others = self.pools.assign(wanted, state)
        plans, waits = self._steps(choice, state)
        inputs = self._inputs(signals, mix, sizer, ahead, horizons, state)
        return Plan(
            at=now,
            goal=self.options.attainment,
            feasible=need.feasible and not choice.short,
            pools=plans,
            servers=choice.servers,
            needed=need.servers,
            kept=kept.servers,
            rates=up,
            inputs=inputs,
            prediction=_prediction(sizer, choice.servers, up),
            reasons=tuple(self._reasons(need, kept, have, wanted, choice, waits, inputs)),
            rejected=tuple(_rejected(need, choice, others)),
        )

    # -- what is asked for -----------------------------------------------------------------------

    def _noted(self, signals: Signals, state: State, now: float) -> Mix:
        forecast = self._forecast
        expected = forecast.expected(signals.interval_s) * signals.interval_s
        self._recent.note(signals, expected if self._asked_at is not None else 0.0)
        forecast.note(signals.arrivals / signals.interval_s, now)
        wanted = signals.arrivals or signals.queued or signals.in_flight
        if wanted or self._asked_at is None:
            self._asked_at = now
        for spec in self.pools:
            self._cold.note(spec.name, state.get(spec.name, PoolState()))
        return self._recent.mix

    def _idle(self, signals: Signals, ahead: dict[Role, Ahead], now: float) -> bool:
        asked_at = self._asked_at
        assert asked_at is not None
        quiet = now - asked_at >= self.options.idle_s and not signals.queued
        foreseen = max(each.peak - each.margin for each in ahead.values())
        return quiet and foreseen < 1.0 / self.options.idle_s

    def _horizon(self, role: Role, state: State, interval_s: float) -> float:
        spec = self._spec(role)
        cold_s = self._cold.seconds(spec, state.get(spec.name, PoolState()))
        # A grid, so that forecasts of one horizon can be compared with what came.
        return math.ceil((cold_s + interval_s) / GRID_S) * GRID_S

    def _spec(self, role: Role) -> PoolSpec:
        spec = self.pools.by_role.get(role)
        return spec if spec is not None and spec.most else self.pools.by_role["flex"]

    def _rates(
        self, signals: Signals, state: State, ahead: dict[Role, Ahead], mix: Mix
    ) -> tuple[Rates, Rates]:
        """What must be carried when starts of now are done, and what may come before then."""
        level = self._forecast.level
        waiting = max(0.0, signals.queued - IN_PASSING_S * level)
        backlog = min(waiting / self.options.drain_s, MOST_BACKLOG * level)
        up, keep = {}, {}
        for role in ROLES:
            spec = self._spec(role)
            fitted = state.get(spec.name, PoolState()).fitted
            doubt = 1.0 if fitted else 1.0 + self.options.unfitted
            foreseen = max(ahead[role].rate + ahead[role].margin, 1.0 / self.options.idle_s)
            band = 0.0 if ahead[role].sure else self.options.band
            up[role] = (foreseen + backlog) * doubt
            keep[role] = max(up[role], (ahead[role].peak + backlog) * doubt * (1.0 + band))
        return Rates(up["prefill"], up["decode"]), Rates(keep["prefill"], keep["decode"])

    def _sizer(self, mix: Mix) -> Sizer:
        return Sizer(
            PrefillModel(mix, self._latency, self._spec("prefill").model, self._slo),
            DecodeModel(mix, self._latency, self._spec("decode"), self._slo),
            self.pools.most,
            (self.pools.price("prefill"), self.pools.price("decode")),
            self.pools.fits,
        )

    # -- what is done ----------------------------------------------------------------------------

    def _under_way(self, signals: Signals, sizer: Sizer, have: Servers) -> Servers:
        """What decodes now takes, whatever lengths are believed; and all that is there as long as
        they are hardly known."""
        places = sizer.decode.batch * MOST_BUSY
        taken = math.ceil(signals.decoding / places)
        if self._recent.answers < KNOWN * signals.decoding and self._recent.told_s < OVER_S:
            taken = max(taken, have.decode)
        return Servers(0, min(self.pools.most.decode, taken))

    def _steps(self, choice: Choice, state: State) -> tuple[tuple[PoolPlan, ...], int]:
        """Starts wait while what drains still takes the budget; their number."""
        budget = self.options.budget
        left = math.inf
        if budget is not None:
            left = budget - sum(
                spec.resources * (each.coming + each.draining)
                for spec in self.pools
                for each in [state.get(spec.name, PoolState())]
            )
        plans, waits = [], 0
        for spec in self.pools:
            now, target = state.get(spec.name, PoolState()), choice.targets[spec.name]
            todo: Actions = actions_to(target, now)
            room = (
                todo.start if left == math.inf else max(0, math.floor(left / spec.resources + 1e-9))
            )
            start = min(todo.start, room)
            left -= start * spec.resources
            waits += todo.start - start
            flip = todo.flip if target.as_prefill > now.as_prefill else -todo.flip
            plans.append(
                PoolPlan(spec.name, target.replicas, target.as_prefill, start, todo.stop, flip)
            )
        return tuple(plans), waits

    # -- what is said ----------------------------------------------------------------------------

    def _inputs(
        self,
        signals: Signals,
        mix: Mix,
        sizer: Sizer,
        ahead: dict[Role, Ahead],
        horizons: dict[Role, float],
        state: State,
    ) -> Inputs:
        roles: dict[str, RoleInputs] = {
            role: RoleInputs(
                *ahead[role][:4],
                horizons[role],
                state.get(self._spec(role).name, PoolState()).fitted,
            )
            for role in ROLES
        }
        classes = mix.classes
        return Inputs(
            offered=self._forecast.level,
            queued=signals.queued,
            prompt=sum(each.share * each.prompts.mean for each in classes),
            uncached=sum(each.share * each.uncached.mean for each in classes),
            output=sum(each.share * each.outputs.mean for each in classes),
            uncached_p90=max((each.uncached.quantile(0.9) for each in classes), default=0.0),
            output_p90=max((each.outputs.quantile(0.9) for each in classes), default=0.0),
            bursts=mix.bursts,
            prefill_s=sizer.prefill.work_s,
            step_s=sizer.decode.step_s,
            batch=sizer.decode.batch,
            bound=sizer.decode.bound,
            roles=roles,
        )

    def _reasons(
        self,
        need: Need,
        kept: Need,
        have: Servers,
        wanted: Servers,
        choice: Choice,
        waits: int,
        inputs: Inputs,
    ) -> Iterable[str]:
        foreseen = max(inputs.roles.values(), key=lambda each: each.horizon_s)
        yield (
            f"{inputs.offered:.2f} requests/s are offered; {foreseen.rate:.2f} + "
            f"{foreseen.margin:.2f} foreseen in {foreseen.horizon_s:.0f} s by {foreseen.way}"
        )
        if need.why:
            yield need.why
        for role, each in inputs.roles.items():
            if not each.fitted:
                yield f"no step of {role} was measured yet: its data sheet, and more load, count"
        for place, role in enumerate(ROLES):
            n, k, h, w = need.servers[place], kept.servers[place], have[place], wanted[place]
            if w > h:
                yield f"{role}: {h} there or coming, {n} needed"
            elif w < h:
                yield f"{role}: {w} do, also for the peak of {inputs.roles[role].peak:.2f}/s"
            elif w > n:
                why = "the peak before a start would be done" if k >= w else "needed a moment ago"
                yield f"{role}: {n} would do, {h} are kept for {why}"
        if choice.short:
            yield f"{choice.short:.0%} of a role's servers are missing within bounds and budget"
        if waits:
            yield f"{waits} starts wait for what drains to leave the budget"


def _at_least(servers: Servers, least: Servers) -> Servers:
    return Servers(*map(max, servers, least))


def _prediction(sizer: Sizer, servers: Servers, rates: Rates) -> Prediction:
    ttft = sizer.prefill.attainment(servers.prefill, rates.prefill) * sizer.prefill.ceiling
    itl = sizer.decode.attainment(servers.decode, rates.decode)
    itl = itl if sizer.decode.keeps_target else 0.0
    wait_s = sizer.prefill.wait(servers.prefill, rates.prefill).quantile(0.95)
    return Prediction(
        attainment=ttft * itl,
        ttft=ttft,
        itl=itl,
        prefill_busy=sizer.prefill.busy(servers.prefill, rates.prefill),
        decode_busy=sizer.decode.busy(servers.decode, rates.decode),
        wait_p95_s=wait_s if math.isfinite(wait_s) else None,
    )


def _rejected(need: Need, choice: Choice, others: Sequence[Choice]) -> Iterable[tuple[str, str]]:
    for each in need.rejected:
        yield str(each.servers), each.why
    for other in others:
        if other.short > choice.short:
            why = f"{other.short:.0%} of a role's servers would be missing"
        else:
            why = (
                f"costs {other.price - choice.price:.0f} replica-seconds more ({other.actions} "
                f"instead of {choice.actions})"
            )
        yield str(other), why
