"""CPU that tracing costs a request: its ids and context, the decision at its end, its spans made
and written, and their way to a real OTLP receiver in another process.

    python -m load_tests.bench_tracing

The request is a usual one: prefill and decode apart, bound late, one candidate of four. CPU is that
of the whole process, the threads of gRPC included. Each step is done in slices of a few
milliseconds and the calmest one counts, as others use the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import grpc
import grpc.aio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub

from router.__main__ import GARBAGE
from router.explain.trail import Trail
from router.tracing.config import TelemetryConfig
from router.tracing.message import TraceMessage
from router.tracing.tracer import Tracer
from router.tracing.tree import spans
from router.tracing.visit import Visit
from tests.router.trails import decision
from workers.core.clock import SystemClock
from workers.core.request import FinishReason, Request, SamplingParams
from workers.core.trace import speak_of
from workers.wire import worker_pb2 as worker

LIMIT_US = 300.0
ROUNDS = 60
SLICE = 40  # requests: short enough to find a moment in which nobody else has the core's twin
# let in, began, placed, opened, prefilled, token 1, bound, fetched, token 2, later ones, the end
TIMES_MS = (2.0, 2.02, 2.1, 3.0, 10.0, 10.02, 10.1, 16.0, 36.0, 4000.0, 4000.1)
RECEIVER = """
import sys
from tests.telemetry.receiver import receiver
with receiver() as (got, endpoint):
    print(endpoint, flush=True)
    sys.stdin.read()
"""
PARAMS = SamplingParams(max_tokens=200, temperature=0.7, seed=1)
PLACED = decision("prefill-0", "prefill-1", "prefill-2", "prefill-3")
BOUND = decision("decode-0", "decode-1", "decode-2", "decode-3")
ADMITTED = worker.Admitted(
    fetched_bytes=1 << 20, admit_wait_s=0.001, transfer_s=0.004, exposed_s=0.004, transport="shm"
)
ASKED = Request(id="req-1-abcd", token_ids=tuple(range(500)), prompt_len=500, params=PARAMS)


def write_down(trail: Trail, at: float) -> None:
    """What the router notes of the request in any case."""
    hands = iter([at + ms / 1e3 for ms in TIMES_MS])
    trail._now = lambda: next(hands)
    trail.asked(ASKED)
    trail.let_in("standard", 0.002)
    trail.began()
    trail.placed(PLACED)
    trail.opened(64)
    trail.prefilled(0.002, 0.005)
    trail.tokens(next(hands), 1)
    trail.bound(BOUND, 1, moving=False)
    trail.fetched(ADMITTED, moving=False)
    trail.tokens(next(hands), 1)
    trail.tokens(next(hands), 198)
    trail.ended_at = next(hands)
    trail.outcome, trail.finish_reason = "ok", FinishReason.LENGTH


class Keeping:
    """An exporter that only keeps."""

    def __init__(self) -> None:
        self.visits: list[Visit] = []

    def offer(self, visit: Visit) -> None:
        self.visits.append(visit)


def play(tracer: Tracer | None, clock: SystemClock) -> None:
    """SLICE requests; without a tracer what the router does in any case."""
    for _ in range(SLICE):
        trail = Trail(clock.now, clock.now(), "req-1", ("chatcmpl-1",), "acme")
        if tracer is None:
            write_down(trail, clock.now())
            continue
        attributes = (("http.request.method", "POST"), ("http.route", "/v1/chat/completions"))
        with tracer.visit("POST /v1/chat/completions", "chat", "", attributes) as visit:
            speak_of("req-1", visit.context.traceparent)
            trail.trace = visit.enter(trail, "demo", PARAMS)
            write_down(trail, clock.now())
            assert trail.traceparent
            visit.answered(200, failed=False)


def least_us(work: Callable[[], object]) -> float:
    """CPU of one request of the SLICE that `work` is done for, in the calmest of many rounds."""
    costs = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        costs.append(time.process_time() - began)
    return min(costs) / SLICE * 1e6


def message_of(visits: Sequence[Visit]) -> TraceMessage:
    message = TraceMessage("bench", "router")
    for visit in visits:
        message.add(visit, 1.7e9)
    return message


async def sending_us(endpoint: str, message: TraceMessage) -> float:
    """The same, of an Export call that the receiver answers."""
    costs = []
    async with grpc.aio.insecure_channel(endpoint.removeprefix("http://")) as channel:
        stub = TraceServiceStub(channel)
        for _ in range(ROUNDS):
            began = time.process_time()
            await stub.Export(message.request)
            costs.append(time.process_time() - began)
    return min(costs) / SLICE * 1e6


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    clock, keeping = SystemClock(), Keeping()
    config = TelemetryConfig(otlp_endpoint="http://nobody:1", sample_ratio=1.0)
    tracer = Tracer(config, clock, random.Random(1), keeping)
    idle = Tracer(TelemetryConfig(), clock, random.Random(1))
    gc.freeze()  # as the router's process does
    gc.set_threshold(GARBAGE, 20, 50)
    base = least_us(lambda: play(None, clock))
    ids = least_us(lambda: play(idle, clock)) - base
    kept = least_us(lambda: play(tracer, clock)) - base
    visits = keeping.visits[:SLICE]
    written = least_us(lambda: message_of(visits))
    with subprocess.Popen(
        [sys.executable, "-c", RECEIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as receiver:
        assert receiver.stdout is not None and receiver.stdin is not None
        endpoint = receiver.stdout.readline().strip()
        sent = asyncio.run(sending_us(endpoint, message_of(visits)))
        receiver.stdin.close()
    print(f"{len(spans(visits[0]))} spans a request; CPU of a request in us:")
    print(f"  ids and context alone    {ids:6.1f}")
    print(f"  ids, context, kept       {kept:6.1f}")
    print(f"  spans made and written   {written:6.1f}")
    print(f"  sent, {SLICE} in a message   {sent:6.1f}")
    print(f"  all of a kept one        {kept + written + sent:6.1f}   limit {LIMIT_US:.0f}")


if __name__ == "__main__":
    main()
