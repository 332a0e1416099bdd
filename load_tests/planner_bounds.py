"""What sizes that follow the load could reach at best: the load known beforehand, each replica
ordered just in time, cold starts and draining paid for. Beside it, what nothing could exceed.

    PYTHONPATH=. python load_tests/planner_bounds.py CURVES --part sine|fresh|... [--only NAME]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.planner.decode_model import DecodeModel
from cluster.planner.lengths import Lengths
from cluster.planner.mix import ClassMix, Mix
from cluster.planner.needs import Rates, Servers, Sizer
from cluster.planner.prefill_model import PrefillModel
from cluster.simulator.scaling.hindsight import PARTS, Foreseen, most
from cluster.simulator.scaling.policy import Sizes
from cluster.simulator.scaling.run import Outcome, run
from cluster.simulator.scaling.sizes import Site
from load_tests.planner_table import MOST, Case, cases
from router.flow.classes import SloClass, SloConfig

STEP_S = 10.0


def sizer(case: Case, site: Site) -> Sizer:
    """Of the planner, with lengths and burstiness known."""
    shapes = case.shapes
    held = sum(s.prompt * s.output for s in shapes) / sum(s.output for s in shapes)
    every = (
        Lengths.of([s.prompt for s in shapes]),
        Lengths.of([s.uncached for s in shapes]),
        Lengths.of([s.output for s in shapes]),
    )
    mix = Mix((ClassMix("chat", 1.0, *every, held),), case.bursts)
    targets = SloClass(ttft=case.promise.ttft_s, itl=case.promise.itl_s)
    slo = SloConfig(classes={"chat": targets}, default="chat")
    return Sizer(
        PrefillModel(mix, site.latency, "prefill", slo),
        DecodeModel(mix, site.latency, site.pools["decode"], slo),
        Servers(*MOST),
        (1.0, 1.0),
        lambda servers: True,
    )


def needed(case: Case, site: Site) -> Callable[[float], Sequence[tuple[float, Sizes]]]:
    """Over time, for a part of the load: the most of each step for prefill; decode holds who came
    while an answer takes."""
    sizes = sizer(case, site)
    stay_s = sizes.decode.sequences(1.0)

    def mean(now: float) -> float:
        return sum(case.rate(max(0.0, now - stay_s * part / 4)) for part in range(5)) / 5

    def of(part: float) -> list[tuple[float, Sizes]]:
        found = []
        for place in range(round((case.warm_up_s + case.window_s) / STEP_S)):
            at = case.starts_s + place * STEP_S
            most_s = max(case.rate(at), case.rate(at + STEP_S))
            rates = Rates(part * most_s, part * mean(at + STEP_S))
            found.append((place * STEP_S, Sizes(*sizes.need(rates, case.goal).servers)))
        return found

    return of


def foreseen(case: Case, site: Site, part: float) -> Outcome:
    schedule = needed(case, site)(part)
    policy = Foreseen(schedule, site.cold_start_s + STEP_S, site.drain_s)
    whole_s = case.warm_up_s + case.window_s
    return run(site, policy, case.arrivals(), whole_s, policy.at(STEP_S), warm_up_s=case.warm_up_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("curves", type=Path)
    parser.add_argument("--part", default="sine")
    parser.add_argument("--cold", default="60,200,300")
    parser.add_argument("--only", default="", help="cases whose name has this")
    parser.add_argument("--sized", default=",".join(map(str, PARTS)), help="parts of the load")
    args = parser.parse_args()
    print("case               cold sized for in time  rep.-h  mean replicas  good/rh")
    for case in cases(args.curves, args.part):
        if args.only not in case.name:
            continue
        print(
            f"{case.name:18} all always busy: {most(case.site(0.0), case.arrivals()):.0f} good/rh"
        )
        for cold_s in map(float, args.cold.split(",")):
            for part in map(float, args.sized.split(",")):
                each = foreseen(case, case.site(cold_s), part)
                print(
                    f"{case.name:18} {cold_s:4.0f} {part:9.0%} {each.attainment:7.1%} "
                    f"{each.replica_hours:7.2f} {each.replica_hours / each.hours:14.2f} "
                    f"{each.goodput:8.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
