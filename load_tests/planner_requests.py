"""The planner request by request: the same windows in the twin and in the whole-cluster simulator,
with the real router, in which minutes take minutes.

    PYTHONPATH=. python load_tests/planner_requests.py CURVES [--only NAME] [--mode remote,auto]

CURVES as for planner_table.py. Rates are a part of that table's, so that a window is some thousand
requests.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cluster.simulator.fleet.plan import FleetPlan, ReplicaPlan
from cluster.simulator.fleet.world import WorkerSizes
from cluster.simulator.scaling.fleet_loop import Scaling, run_fleet
from cluster.simulator.scaling.load import Shape, sine
from cluster.simulator.scaling.policy import Fixed, Planned, Policy, Sizes
from cluster.simulator.scaling.run import Outcome, run
from cluster.simulator.scaling.sizes import Promise
from load_tests.planner_table import Case, curve, lengths, start
from router.config import Limits
from router.flow.classes import SloClass, SloConfig
from router.latency import FittedLatency, HardwareClass
from router.placement.placement import Disaggregation
from workers.models.config import read_shape
from workers.models.sizing import Split, kv_bytes_per_token

CONTEXT, CHUNK, BATCH, BLOCK = 131_072, 2048, 256, 64


@dataclass(frozen=True, slots=True)
class Window:
    """`fixed`: these sizes instead of the planner's."""

    case: Case
    cold_start_s: float
    fixed: Sizes | None = None


def windows(folder: Path) -> Iterator[Window]:
    hour = 3600.0
    steady = ([Shape(8000, 1000, 8000)], Promise(2.0, 0.03), "llama-8b h100 1", 400_000, 40.0)
    plain = {"bursts": 1.0, "warm_up_s": 0.0, "season": False}
    yield Window(
        Case("sine 1..6", sine(1.0, 6.0, 900.0), 0.0, *steady, window_s=500.0, **plain),  # type: ignore[arg-type]
        60.0,
    )
    for sizes in (Sizes(1, 6), Sizes(3, 3)):
        yield Window(
            Case("3.5/s, too few", lambda now: 3.5, 0.0, *steady, window_s=240.0, **plain),  # type: ignore[arg-type]
            60.0,
            sizes,
        )
    rate = curve(folder, "language_m-small", 2.5)
    chat = lengths("azure2023_conv_300.jsonl.gz")
    yield Window(
        Case(
            "m-small 60h chat", rate, 60 * hour, chat, Promise(2.0, 0.08), "llama-70b a100 4",
            400_000, 40.0, window_s=300.0, warm_up_s=60.0,
        ),
        60.0,
    )  # fmt: skip
    rate = curve(folder, "language_m-mid", 3.0)
    long = [s for s in lengths("mooncake_conversation_min00-15.jsonl.gz") if s.prompt < 60_000]
    yield Window(
        Case(
            "m-mid 40h long", rate, 40 * hour, long, Promise(5.0, 0.03), "llama-8b h100 1",
            400_000, 20.0, window_s=240.0, warm_up_s=60.0,
        ),
        60.0,
    )  # fmt: skip


def fleet(case: Case, mode: Disaggregation) -> FleetPlan:
    """One replica of each role; how many there are is the policy's."""
    shape, device, ranks = case.engine.split()
    model, where = read_shape(shape), HardwareClass(device, int(ranks))
    per_token = kv_bytes_per_token(model, Split(1, 1), 2)
    sizes = WorkerSizes(
        device, int(ranks), 1, BLOCK, case.kv_tokens, CONTEXT, CHUNK, BATCH, per_token
    )
    replicas = [ReplicaPlan(f"{role}-0", role, role, sizes) for role in ("prefill", "decode")]
    promise = case.promise
    targets = SloClass(ttft=promise.ttft_s, itl=promise.itl_s, max_wait=promise.max_wait_s)
    return FleetPlan(
        replicas,
        FittedLatency(model, where),
        FittedLatency(model, where),
        SloConfig(classes={"chat": targets}, default="chat"),
        Limits(max_requests=8192),
        disaggregation=mode,
    )


def say(window: Window, where: str, found: Outcome, cpu_s: float) -> None:
    print(
        f"{window.case.name:18} {window.cold_start_s:4.0f} {where:7} {found.requests:6} "
        f"{found.attainment:7.1%} {found.refused:7} {found.replica_hours:7.2f} "
        f"{found.actions:7} {cpu_s:6.0f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("curves", type=Path)
    parser.add_argument("--only", default="", help="windows whose name has this")
    parser.add_argument("--mode", default="remote")
    args = parser.parse_args()
    print("window             cold where   requests in time refused  rep.-h actions  CPU s")
    for window in windows(args.curves):
        if args.only not in window.case.name:
            continue
        case, cold_s = window.case, window.cold_start_s
        whole_s = case.warm_up_s + case.window_s
        first = window.fixed or start(case, case.site(cold_s))

        def policy(window: Window = window) -> Policy:
            if window.fixed is not None:
                return Fixed(window.fixed)
            # Each with a latency model of its own.
            site = window.case.site(window.cold_start_s)
            return Planned(window.case.planner(site), "chat")

        began = time.process_time()
        twin = run(
            case.site(cold_s), policy(), case.arrivals(), whole_s, first, warm_up_s=case.warm_up_s
        )
        say(window, "twin", twin, time.process_time() - began)
        for mode in args.mode.split(","):
            began = time.process_time()
            scaling = Scaling(whole_s, first, cold_s, warm_up_s=case.warm_up_s)
            plan = fleet(case, cast(Disaggregation, mode))
            real = run_fleet(plan, policy(), case.arrivals(), scaling)
            say(window, mode, real, time.process_time() - began)


if __name__ == "__main__":
    main()
