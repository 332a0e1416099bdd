"""A policy beside the twin: it looks every interval, and what it asks for takes its time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cluster.planner.signals import PoolState
from cluster.simulator.scaling.load import Arrival
from cluster.simulator.scaling.policy import Policy, Seen, Sizes
from cluster.simulator.scaling.sizes import Site
from cluster.simulator.scaling.twin import Ended, Twin

HOUR_S = 3600.0
LEAVES_S = 3600.0  # after the window, at most: what is still there is not in time


@dataclass(slots=True)
class Life:
    """Of one pool: what it has besides those up. Replica-seconds count from the start on, until
    the last sequence has left."""

    up: int
    starting: list[float] = field(default_factory=list)  # since when
    draining: list[float] = field(default_factory=list)  # until when
    took_s: list[float] = field(default_factory=list)
    replica_s: float = 0.0
    starts: int = 0
    stops: int = 0

    def state(self, now: float) -> PoolState:
        took, self.took_s = tuple(self.took_s), []
        return PoolState(
            self.up, tuple(now - at for at in self.starting), len(self.draining), took_s=took
        )

    def pass_until(self, now: float, elapsed: float, cold_start_s: float) -> int:
        """Replicas that came up in this time."""
        self.replica_s += elapsed * (self.up + len(self.starting))
        self.replica_s += sum(min(elapsed, max(0.0, at - now + elapsed)) for at in self.draining)
        self.draining = [at for at in self.draining if at > now]
        ready = [at for at in self.starting if at + cold_start_s <= now + 1e-6]
        self.starting = self.starting[len(ready) :]
        self.up += len(ready)
        self.took_s += [cold_start_s] * len(ready)
        return len(ready)

    def resize(self, size: int, now: float) -> int:
        """Replicas that are to leave now; those that start go first."""
        more = size - self.up - len(self.starting)
        self.starts += max(0, more)
        self.starting += [now] * max(0, more)
        fewer = max(0, -more)
        self.stops += fewer
        cancelled = min(fewer, len(self.starting))
        if cancelled:
            del self.starting[-cancelled:]
        leaving = min(fewer - cancelled, self.up)
        self.up -= leaving
        return leaving


@dataclass(frozen=True, slots=True)
class Outcome:
    """`actions_per_hour`: starts and stops. `sizes`: over time."""

    requests: int
    good: int
    late: int
    refused: int
    replica_hours: float
    actions: int
    hours: float
    sizes: tuple[tuple[float, Sizes], ...]

    @property
    def attainment(self) -> float:
        return self.good / self.requests if self.requests else 1.0

    @property
    def goodput(self) -> float:
        """Good requests a replica-hour."""
        return self.good / self.replica_hours if self.replica_hours else 0.0

    @property
    def actions_per_hour(self) -> float:
        return self.actions / self.hours


def run(
    site: Site,
    policy: Policy,
    arrivals: Iterable[Arrival],
    window_s: float,
    first: Sizes,
    interval_s: float = 10.0,
    warm_up_s: float = 0.0,
) -> Outcome:
    """Requests that come in the first `warm_up_s`, and replicas until then, do not count."""
    twin = Twin(site, *first, arrivals)
    lives = (Life(first.prefill), Life(first.decode))
    counted: list[Ended] = []
    came_count, now = 0, 0.0
    sizes: list[tuple[float, Sizes]] = []
    before = (0.0, 0)
    while now < window_s or (not twin.over and now < window_s + LEAVES_S):
        now += interval_s
        came, gone = twin.until(now)
        came_count += sum(each.at_s >= warm_up_s for each in came)
        counted += (each for each in gone if each.arrived >= warm_up_s)
        if now > window_s:
            continue
        prefill_up = lives[0].pass_until(now, interval_s, site.cold_start_s)
        decode_up = lives[1].pass_until(now, interval_s, site.cold_start_s)
        for _ in range(prefill_up):
            twin.prefill.add(now)
        twin.decode.servers += decode_up
        twin.decode.draining = len(lives[1].draining)
        seen = Seen(
            now,
            interval_s,
            [each.shape for each in came],
            [each.shape for each in gone if each.ttft_s < 1e9],
            [each.ttft_s for each in gone if each.ttft_s < 1e9],
            [each.itl_s for each in gone if each.itl_s is not None],
            len(twin.prefill),
            Sizes(
                len(twin.prefill) + twin.prefill.running(now),
                twin.decode.active + len(twin.decode.waiting),
            ),
            lives[0].state(now),
            lives[1].state(now),
            twin.decode.made,
        )
        wanted = policy.sizes(seen)
        for _ in range(lives[0].resize(wanted.prefill, now)):
            lives[0].draining.append(twin.prefill.remove(now))
        leaving = lives[1].resize(wanted.decode, now)
        lives[1].draining += [now + site.drain_s] * leaving
        twin.decode.servers -= leaving
        twin.decode.draining = len(lives[1].draining)
        sizes.append((now, Sizes(lives[0].up, lives[1].up)))
        if now <= warm_up_s:
            before = (
                sum(life.replica_s for life in lives),
                sum(life.starts + life.stops for life in lives),
            )
    return Outcome(
        came_count,
        sum(each.good for each in counted),
        sum(not each.good for each in counted),
        sum(each.ttft_s > 1e9 for each in counted),
        (sum(life.replica_s for life in lives) - before[0]) / HOUR_S,
        sum(life.starts + life.stops for life in lives) - before[1],
        (window_s - warm_up_s) / HOUR_S,
        tuple(sizes),
    )
