#!/usr/bin/env python3
"""What it costs to write down a request's way: CPU time of the thread for one request bound late,
and memory of a full ring. Placement itself is not counted: a trail only refers to its decisions.

python load_tests/bench_explain.py --replicas 64
"""

from __future__ import annotations

import argparse
import gc
import random
import tracemalloc
from time import thread_time
from typing import cast

from cluster.simulator.route import quantile
from router.api import Call
from router.explain.answer import explanation
from router.explain.trails import KEPT, Trails
from router.latency import FittedLatency, HardwareClass
from router.placement.binding import Overlap
from router.placement.decision import Decision, Need, Phase
from router.placement.placement import Placement
from router.replica import Replica, ReplicaState
from router.worker_client import WorkerClient
from workers.core.clock import SystemClock
from workers.core.request import Request, SamplingParams
from workers.core.roles import RoleName
from workers.models.config import read_shape
from workers.wire import worker_pb2 as worker
from workers.wire.redis_keys import ReplicaRecord

LLAMA_8B = read_shape("llama-8b")
PROMPT = tuple(range(4000))
OVERLAP = Overlap(0.01, 0.001, 0.0, 4000, 100_000, 200_000)
ADMITTED = worker.Admitted(fetched_bytes=1 << 20, transfer_s=0.01, exposed_s=0.01, transport="shm")


def replica(number: int, role: RoleName) -> Replica:
    record = ReplicaRecord(
        id=f"{role}-{number}", incarnation=f"{number}", address="", pool=role, role=role,
        model="", kv_abi="", block_size=16, context_length=1 << 20, kv_tokens=1 << 20,
    )  # fmt: skip
    made = Replica(record, cast(WorkerClient, None))
    made.move(ReplicaState.UP, "benchmark")
    return made


def write(
    trails: Trails, now: float, placed: Decision, weighed: Decision, bound: Decision
) -> float:
    """Microseconds for all that is said of one request, but for its tokens after the second."""
    call = Call("m", "", SamplingParams(), f"chatcmpl-{now}", also=("req-1", "chatcmpl-1"))
    request = Request(f"chatcmpl-{now}-00000000", PROMPT, len(PROMPT), SamplingParams())
    start = thread_time()
    trail = trails.begin(call, now)
    trail.asked(request)
    trail.let_in("standard", 0.0)
    trail.began()
    trail.placed(placed)
    trail.opened(2000)
    trail.timed(weighed, OVERLAP)
    trail.prefilled(0.0, 0.1)
    trail.tokens(trails.now(), 1)
    trail.bound(bound, 1, moving=False)
    trail.fetched(ADMITTED, moving=False)
    trail.tokens(trails.now(), 1)
    trails.end(trail, "ok", "")
    return (thread_time() - start) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicas", type=int, default=64, help="half of them prefill")
    options = parser.parse_args()
    clock = SystemClock()
    placement = Placement(FittedLatency(LLAMA_8B, HardwareClass("h100")), random.Random(1))
    half = options.replicas // 2
    replicas = [replica(n, "prefill") for n in range(half)]
    replicas += [replica(n, "decode") for n in range(half)]

    def decide(phase: Phase) -> Decision:
        need = Need(phase, len(PROMPT), {r.id: 16 * i for i, r in enumerate(replicas)})
        decision = placement.place(need, replicas)
        assert decision is not None
        return decision

    trails = Trails(clock)
    gc.collect()
    tracemalloc.start()
    for _ in range(2 * KEPT):
        write(trails, clock.now(), decide("prefill"), decide("decode"), decide("decode"))
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = len(trails.newest())
    # Decisions are freed some day, with trails or without: here they live on, so that this is not
    # taken for a cost of writing.
    decisions = [(decide("prefill"), decide("decode"), decide("decode")) for _ in range(KEPT)]
    trails = Trails(clock)
    took_us = [write(trails, clock.now(), *three) for _ in range(4) for three in decisions]
    newest = trails.newest()[0]
    start = thread_time()
    for _ in range(10_000):
        newest.tokens(clock.now(), 1)
    token_us = (thread_time() - start) * 100
    start = thread_time()
    for _ in range(100):
        explanation(newest, clock.now()).SerializeToString()
    explain_us = (thread_time() - start) * 1e4
    print(
        f"one request     p50 {quantile(took_us, 0.5):.1f} us  p99 {quantile(took_us, 0.99):.1f} us"
    )
    print(f"another token   {token_us:.2f} us")
    print(f"explaining one  {explain_us:.0f} us")
    print(f"kept            {kept} requests in {held / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
