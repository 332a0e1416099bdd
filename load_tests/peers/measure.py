"""One workload on one running system, as a row of figures."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from typing import Any

from cluster.bench.client import Sample
from cluster.bench.interference import Interference
from cluster.bench.report import percentile, summarise
from load_tests.peers import machine
from load_tests.peers.process import PeerFailed, Running
from load_tests.peers.workloads import BATCHES, INTERFERENCES, Batch
from workers.core.clock import SystemClock

Row = dict[str, Any]


async def measure(running: Running, workload: str, seed: str) -> Row | None:
    """None where this system cannot do this workload. Raises PeerFailed for wrong answers."""
    if workload in INTERFERENCES and running.target is None:
        return None
    cores, clock = len(os.sched_getaffinity(0)), SystemClock()
    began, before = clock.now(), machine.usage(os.getpid())
    if running.target is not None and workload in INTERFERENCES:
        plan = INTERFERENCES[workload]
        row = await interference_row(Interference(running.target, clock, plan, seed))
    else:
        batch = BATCHES[workload]
        row = batch_row(batch, await running.samples(batch.jobs(seed)))
    after, wall_s = machine.usage(os.getpid()), clock.now() - began
    return row | {
        "wall_s": wall_s,
        "cpu_s": after.tree - before.tree,
        "others": machine.others_share(before, after, wall_s, cores),
        "memory_gb": machine.memory(running.pid) / 1e9,
    }


async def warm_up(running: Running, batches: Sequence[Batch], seed: str) -> None:
    for number, batch in enumerate(batches):
        check(await running.samples(batch.jobs(f"{seed} warm {number}")), batch)


def batch_row(batch: Batch, samples: Sequence[Sample]) -> Row:
    """Times in milliseconds; tokens a second from the first request to the last token. `token` is
    a request's time after its first token, divided by its tokens; `itl` the gaps between chunks of
    all requests together; `chunk_tokens` says how many tokens came in a chunk."""
    check(samples, batch)
    summary = summarise(samples, None)
    ttft = [sample.ttft for sample in samples]
    gaps = [gap for sample in samples for gap in sample.gaps]
    return {
        "tok_s": summary["output_tokens_per_s"],
        "ttft_p50_ms": percentile(ttft, 0.5) * 1000,
        "ttft_max_ms": max(ttft) * 1000,
        "token_ms": statistics.mean(sample.mean_itl for sample in samples) * 1000,
        "itl_p50_ms": percentile(gaps, 0.5) * 1000,
        "itl_p99_ms": percentile(gaps, 0.99) * 1000,
        "chunk_tokens": summary["output_tokens"] / sum(len(s.arrivals) for s in samples),
        "cached_tokens": summary["cached_tokens"],
    }


async def interference_row(disturbed: Interference) -> Row:
    quiet, loaded = await disturbed.run()
    plan, prompts = disturbed.plan, disturbed.prompts
    check(prompts, Batch(len(prompts), plan.prompt_input, plan.prompt_output))
    steady = disturbed.steady
    row: Row = {}
    for name, gaps in (
        ("quiet", quiet.gaps_within(steady)),
        ("loaded", loaded.gaps_across(steady)),
    ):
        for quantile in (50, 90, 99):
            row[f"{name}_itl_p{quantile}_ms"] = percentile(gaps, quantile / 100) * 1000
    ttft = [sample.ttft for sample in prompts]
    return row | {
        "quiet_tok_s": quiet.tokens_per_s(steady),
        "loaded_tok_s": loaded.tokens_per_s(steady),
        "ttft_p50_ms": percentile(ttft, 0.5) * 1000,
        "ttft_max_ms": max(ttft) * 1000,
        "prompts": len(prompts),
    }


def check(samples: Sequence[Sample], expected: Batch) -> None:
    """Raises PeerFailed unless every request brought exactly the tokens that it should."""
    lengths = (expected.input_tokens, expected.output_tokens)
    if len(samples) != expected.requests:
        raise PeerFailed(f"{len(samples)} answers for {expected.requests} requests")
    for sample in samples:
        if sample.error is not None:
            raise PeerFailed(f"a request failed: {sample.error}")
        if (sample.input_tokens, sample.output_tokens) != lengths:
            got = f"{sample.input_tokens} in, {sample.output_tokens} out"
            raise PeerFailed(f"{got} instead of {lengths[0]} in, {lengths[1]} out")
