"""Planner against the rules of others and the best fixed size in hindsight, hours of load each.

    python load_tests/planner_table.py CURVES [--part PART] [--cold 60,200,300] [--policies ...]

CURVES is a folder with ServeGen's rate curves (servegen_rate_curve_*.csv). Everything runs in the
twin of cluster/simulator/scaling.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.bench.workload import read_trace
from cluster.planner.options import Options
from cluster.planner.planner import Planner
from cluster.planner.signals import PoolSpec
from cluster.simulator.scaling.hindsight import best_fixed
from cluster.simulator.scaling.load import Arrival, Curve, Rate, Shape, arrivals, sine
from cluster.simulator.scaling.policy import Planned, Policy, Sizes
from cluster.simulator.scaling.rules import P90, QueueLength, Throughput
from cluster.simulator.scaling.run import Outcome, run
from cluster.simulator.scaling.sizes import Promise, Site
from router.flow.classes import SloClass, SloConfig
from router.latency import FittedLatency, HardwareClass
from workers.models.config import read_shape

TRACES = Path(__file__).parent / "traces"
DAY_S = 86_400.0
WINDOW_S, WARM_UP_S = 3600.0, 600.0
MOST = Sizes(60, 150)
GOAL = 0.95
PARTS = ("tune", "report", "fresh", "sine", "constant")
RULES = ("queue", "throughput", "p90")


@dataclass(frozen=True, slots=True)
class Case:
    """`starts_s`: where in the curve; the day before it is known to who can use it. `engine`: of
    every replica: model, device, tensor ranks."""

    name: str
    rate: Rate
    starts_s: float
    shapes: list[Shape]
    promise: Promise
    engine: str
    kv_tokens: int
    drain_s: float
    bursts: float = 2.0
    window_s: float = WINDOW_S
    warm_up_s: float = WARM_UP_S
    season: bool = True
    goal: float = GOAL

    def arrivals(self) -> Iterator[Arrival]:
        whole = self.warm_up_s + self.window_s

        def rate(now: float) -> float:
            return self.rate(self.starts_s + now)

        return arrivals(rate, self.shapes, whole, self.bursts, seed=7)

    def site(self, cold_start_s: float) -> Site:
        shape, device, ranks = self.engine.split()
        where = HardwareClass(device, int(ranks))
        model = FittedLatency(read_shape(shape), where)
        for name in ("prefill", "decode"):
            model.placed(name, where, 2048)
        pools = {
            "prefill": PoolSpec("prefill", "prefill", "prefill", 1, MOST.prefill),
            "decode": PoolSpec(
                "decode", "decode", "decode", 1, MOST.decode, kv_tokens=self.kv_tokens
            ),
        }
        return Site(pools, model, self.promise, cold_start_s, self.drain_s)

    def planner(self, site: Site, goal: float | None = None, forecast: bool = True) -> Planner:
        targets = SloClass(ttft=self.promise.ttft_s, itl=self.promise.itl_s)
        slo = SloConfig(classes={"chat": targets}, default="chat")
        season_s = DAY_S if self.season else None
        options = Options(attainment=goal or self.goal, season_s=season_s, forecast=forecast)
        planner = Planner(list(site.pools.values()), slo, site.latency, options)
        if self.season:
            past = range(int(max(-self.starts_s, -DAY_S)), 0, 300)
            planner.learn((float(at), self.rate(self.starts_s + at)) for at in past)
        return planner


def lengths(trace: str) -> list[Shape]:
    jobs = read_trace(TRACES / trace)
    return [Shape(job.input_tokens, job.output_tokens, job.input_tokens) for job in jobs]


def curve(folder: Path, name: str, mean: float) -> Rate:
    return Curve.read(folder / f"servegen_rate_curve_{name}.csv").scaled(mean).at


def cases(folder: Path, part: str) -> Iterator[Case]:
    chat = (
        lengths("azure2023_conv_300.jsonl.gz"),
        Promise(2.0, 0.08),
        "llama-70b a100 4",
        400_000,
        40.0,
    )
    long = (
        [s for s in lengths("mooncake_conversation_min00-15.jsonl.gz") if s.prompt < 60_000],
        *(Promise(5.0, 0.03), "llama-8b h100 1", 400_000, 20.0),
    )
    think = (
        lengths("servegen_r1_30min_5rps.jsonl.gz"),
        Promise(2.0, 0.03),
        "llama-8b h100 1",
        400_000,
        120.0,
    )
    hour = 3600.0
    if part == "tune":
        for starts in (26 * hour, 32 * hour, 44 * hour):
            rate = curve(folder, "language_m-large", 14.0)
            yield Case(f"m-large {starts / hour:.0f}h chat", rate, starts, *chat)
    if part == "report":
        for starts in (30 * hour, 56 * hour):
            rate = curve(folder, "language_m-mid", 14.0)
            yield Case(f"m-mid {starts / hour:.0f}h chat", rate, starts, *chat)
        for starts in (36 * hour,):
            rate = curve(folder, "language_m-small", 12.0)
            yield Case(f"m-small {starts / hour:.0f}h long", rate, starts, *long)
        rate = curve(folder, "reason_deepseek-r1", 6.0)
        yield Case("r1 1h think", rate, hour, *think, season=False)
        yield Case("r1 7h think", rate, 7 * hour, *think, season=False)
    if part == "fresh":
        for starts in (10 * hour, 65 * hour):
            rate = curve(folder, "language_m-mid", 14.0)
            yield Case(f"m-mid {starts / hour:.0f}h chat", rate, starts, *chat)
        for starts in (18 * hour, 80 * hour):
            rate = curve(folder, "language_m-small", 12.0)
            yield Case(f"m-small {starts / hour:.0f}h long", rate, starts, *long)
        for starts in (4 * hour, 10 * hour):
            rate = curve(folder, "reason_deepseek-r1", 6.0)
            yield Case(f"r1 {starts / hour:.0f}h think", rate, starts, *think, season=False)
    fixed = ([Shape(8000, 1000, 8000)], Promise(2.0, 0.03), "llama-8b h100 1", 400_000, 40.0)
    if part == "sine":
        yield Case(
            "sine 1..24", sine(1.0, 24.0, 900.0), 0.0, *fixed,
            bursts=1.0, window_s=2700.0, warm_up_s=1800.0, season=False, goal=0.9,
        )  # fmt: skip
    if part == "constant":
        for rate_s in (3.0, 8.0, 20.0):
            yield Case(
                f"constant {rate_s:g}", lambda now, r=rate_s: r, 0.0, *fixed,  # type: ignore[misc]
                bursts=1.0, season=False,
            )  # fmt: skip


def policies(case: Case, site: Site) -> dict[str, Callable[[], Policy]]:
    context = sum(s.prompt + s.output / 2 for s in case.shapes) / len(case.shapes)
    full = max(1, int(0.7 * site.batch(round(context))))
    return {
        "planner": lambda: Planned(case.planner(site), "chat"),
        "planner 99 %": lambda: Planned(case.planner(site, goal=0.99), "chat"),
        "no forecast": lambda: Planned(case.planner(site, forecast=False), "chat"),
        "queue": lambda: QueueLength(Sizes(2, full), MOST),
        "throughput": lambda: Throughput(site, MOST),
        "p90": lambda: P90(site, MOST),
    }


def measure(case: Case, cold_start_s: float, names: list[str]) -> dict[str, Outcome]:
    """By policy, the planner and all rules among them; each begins with the same size."""
    site = case.site(cold_start_s)
    first = start(case, site)
    whole = case.warm_up_s + case.window_s
    found = {
        name: run(site, policy(), case.arrivals(), whole, first, warm_up_s=case.warm_up_s)
        for name, policy in policies(case, site).items()
        if name in names
    }
    return found


def hindsight(case: Case) -> Outcome:
    """It starts nothing, so cold starts do not matter."""
    site = case.site(0.0)
    whole = case.warm_up_s + case.window_s
    return best_fixed(site, case.arrivals, whole, case.warm_up_s, start(case, site), case.goal)


def start(case: Case, site: Site) -> Sizes:
    """For the load of the beginning, by arithmetic that all rules share: 70 % busy."""
    rate = case.rate(case.starts_s)
    shapes = case.shapes
    work_s = sum(
        site.latency.prefill_s("prefill", s.uncached, s.prompt - s.uncached) for s in shapes
    ) / len(shapes)
    output = sum(s.output for s in shapes) / len(shapes)
    held = sum(s.output * (s.prompt + s.output / 2) for s in shapes) / len(shapes) / output
    batch = site.batch(round(held))
    step_s = site.latency.decode_s("decode", batch, round(batch * held))
    sizes = (rate * work_s / 0.7, rate * output * step_s / batch / 0.7)
    return Sizes(*(max(1, round(size + 0.5)) for size in sizes))


def say(case: Case, cold_start_s: float, found: dict[str, Outcome]) -> dict[str, object]:
    for name, each in found.items():
        print(
            f"{case.name:18} {cold_start_s:4.0f} {name:12} {each.attainment:6.1%} "
            f"{each.replica_hours:7.1f} {each.goodput:7.0f} {each.actions_per_hour:6.1f}",
            flush=True,
        )
    mine, fixed = found["planner"], found["hindsight"]
    rules = {name: found[name] for name in RULES}
    fit = {n: r for n, r in rules.items() if r.attainment >= 0.95}
    best = max(rules.values(), key=lambda each: each.goodput)
    row: dict[str, object] = {
        "case": case.name,
        "cold_start_s": cold_start_s,
        "attainment": mine.attainment,
        "goodput": mine.goodput,
        "over_best_rule": mine.goodput / best.goodput if best.goodput else None,
        "over_best_fit_rule": (
            mine.goodput / max(r.goodput for r in fit.values()) if fit else None
        ),
        "over_hindsight": mine.goodput / fixed.goodput,
        "actions_per_hour": mine.actions_per_hour,
        "policies": {
            name: [each.attainment, each.replica_hours, each.goodput, each.actions_per_hour]
            for name, each in found.items()
        },
    }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("curves", type=Path)
    parser.add_argument("--part", default="report", choices=PARTS)
    parser.add_argument("--cold", default="60,200,300")
    parser.add_argument("--only", default="", help="cases whose name has this")
    parser.add_argument("--policies", default="planner,planner 99 %,no forecast," + ",".join(RULES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print("case               cold policy       in time  rep.-h  good/rh  act./h")
    rows = []
    for case in cases(args.curves, args.part):
        if args.only not in case.name:
            continue
        fixed = hindsight(case)
        for cold in map(float, args.cold.split(",")):
            rows.append(
                say(
                    case, cold, measure(case, cold, args.policies.split(",")) | {"hindsight": fixed}
                )
            )
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    for row in rows:
        over = row["over_best_fit_rule"]
        print(
            f"{row['case']:18} {row['cold_start_s']:4.0f} in time {row['attainment']:.1%}, "
            f"{'no rule at 95 %' if over is None else f'{over:.2f} x best rule at 95 %'}, "
            f"{row['over_best_rule'] or 0:.2f} x best rule of any attainment, "
            f"{row['over_hindsight']:.2f} x hindsight, {row['actions_per_hour']:.1f} actions/h"
        )


if __name__ == "__main__":
    main()
