#!/usr/bin/env python3
"""How long one decision takes: hashing the prompt, matching it, choosing among the replicas.
CPU time of the thread, so that a machine shared with others measures the same.

python load_tests/bench_placement.py --replicas 64 --tokens 4000
"""

from __future__ import annotations

import argparse
import random
from collections import deque
from itertools import pairwise
from time import thread_time
from typing import cast

from cluster.simulator.route import quantile
from router.__main__ import tame_garbage
from router.index.expecting import ExpectingIndex
from router.latency import FittedLatency, HardwareClass
from router.placement.decision import Need, Targets
from router.placement.placement import Placement
from router.replica import Assignment, Replica, ReplicaState
from router.worker_client import WorkerClient
from workers.core.clock import SystemClock
from workers.core.events import EventKind, KVEvent
from workers.core.hashing import block_ids
from workers.core.roles import RoleName
from workers.models.config import read_shape
from workers.wire import worker_pb2 as worker
from workers.wire.redis_keys import ReplicaRecord

LLAMA_8B = read_shape("llama-8b")
BLOCK = 16
WARM_UP = 50
QUEUED = 8  # prompts that each replica has at once
DECODING = 16  # sequences on each decode replica
TARGETS = Targets(1.0, 0.05, 0.05)


def replica(number: int, role: RoleName) -> Replica:
    record = ReplicaRecord(
        id=f"{role}-{number}", incarnation=f"{number}", address="", pool=role,
        role=role, model="", kv_abi="", block_size=BLOCK, context_length=1 << 20,
        kv_tokens=1 << 20,
    )  # fmt: skip
    made = Replica(record, cast(WorkerClient, None))
    made.load = worker.LoadReport(
        blocks_total=1 << 16, step_tokens=2048, seqs_limit=256, kv_bytes_per_token=1 << 17
    )
    made.move(ReplicaState.UP, "benchmark")
    return made


def prompt(rng: random.Random, families: int, tokens: int) -> list[int]:
    """One of some long prefixes, cut anywhere, and what nobody has seen."""
    family = random.Random(rng.randrange(families))
    shared = rng.randrange(tokens)
    known = [family.randrange(1 << 17) for _ in range(shared)]
    return known + [rng.randrange(1 << 17) for _ in range(tokens - shared)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--decode", type=int, default=32, help="of these, decode replicas")
    parser.add_argument("--remote", action="store_true", help="prompts stay away from these")
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--decisions", type=int, default=2000)
    options = parser.parse_args()
    rng, clock = random.Random(1), SystemClock()
    index = ExpectingIndex(clock)
    placement = Placement(
        FittedLatency(LLAMA_8B, HardwareClass("h100")),
        rng,
        disaggregation="remote" if options.remote else "auto",
        clock=clock,
    )
    replicas = [
        replica(number, "decode" if number < options.decode else "prefill")
        for number in range(options.replicas)
    ]
    for each in replicas[: options.decode]:
        for _ in range(DECODING):
            each.assignments.add(0, options.tokens, decodes=True)
    waiting: dict[str, deque[Assignment]] = {}
    took_us: dict[str, list[float]] = {"hash": [], "match": [], "place": [], "all": []}
    tame_garbage()  # as the router does
    for _ in range(WARM_UP + options.decisions):
        tokens = prompt(rng, options.replicas, options.tokens)
        stamps = [thread_time()]
        ids = block_ids(tokens, b"", BLOCK)
        stamps.append(thread_time())
        cached = {name: depth * BLOCK for name, depth in index.match(ids).items()}
        stamps.append(thread_time())
        decision = placement.place(
            Need("prefill", len(tokens), cached, ids=ids, targets=TARGETS), replicas
        )
        stamps.append(thread_time())
        assert decision is not None
        chosen = decision.replica
        index.apply(chosen.id, [KVEvent(EventKind.STORED, tuple(ids))])
        queued = waiting.setdefault(chosen.id, deque())
        uncached = len(tokens) - decision.cached_tokens
        queued.append(chosen.assignments.add(uncached, len(tokens)))
        if len(queued) > QUEUED:
            chosen.assignments.remove(queued.popleft())
        parts = [(b - a) * 1e6 for a, b in pairwise(stamps)]
        for name, value in zip(took_us, [*parts, sum(parts)], strict=True):
            took_us[name].append(value)
    for name, values in took_us.items():
        kept = values[WARM_UP:]
        print(f"{name:>6}  p50 {quantile(kept, 0.5):6.0f} us  p99 {quantile(kept, 0.99):6.0f} us")


if __name__ == "__main__":
    main()
