"""CPU that tracing costs a request, and how it delays the event loop, with a real OTLP receiver in
another process.

    python -m load_tests.bench_tracing

The request is a usual one: prefill and decode apart, bound late, one candidate of four. CPU is that
of the whole process, those threads included that encode and send; the calmest of many rounds
counts, as others use the machine. How late the event loop wakes shows what those threads take from
it: all of them share one GIL.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import uvloop

from router.__main__ import GARBAGE
from router.explain.trail import Trail
from router.tracing.config import TelemetryConfig
from router.tracing.otlp import OtlpExporter
from router.tracing.start import SWITCH_S
from router.tracing.tracer import Tracer
from tests.router.trails import decision
from workers.core.clock import SystemClock
from workers.core.request import FinishReason, Request, SamplingParams
from workers.core.trace import speak_of
from workers.wire import worker_pb2 as worker

LIMIT_US = 300.0
ROUNDS = 12
REQUESTS = 200  # of a round
LOOK_S = 0.02
TICK_S, TICKS = 0.001, 600  # of a round
LOAD_EVERY_S, LOAD = 0.1, 20  # 200 requests a second
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


class Setup(NamedTuple):
    name: str
    config: TelemetryConfig | None  # None: the router without any tracing
    exporter: OtlpExporter | None

    def tracer(self, clock: SystemClock) -> Tracer | None:
        """With the same ids every time, so that the same requests are sampled."""
        if self.config is None:
            return None
        return Tracer(self.config, clock, random.Random(1), self.exporter)


def setups(endpoint: str, clock: SystemClock) -> list[Setup]:
    def sampled(name: str, config: TelemetryConfig) -> Setup:
        return Setup(name, config, OtlpExporter(endpoint, {}, clock, "bench", "router"))

    default = TelemetryConfig(otlp_endpoint=endpoint)
    return [
        Setup("no tracing at all", None, None),
        Setup("ids and context alone", TelemetryConfig(), None),
        sampled(f"{default.sample_ratio:.0%} sampled, the default", default),
        sampled("all sampled", TelemetryConfig(otlp_endpoint=endpoint, sample_ratio=1.0)),
    ]


def play(tracer: Tracer | None, clock: SystemClock, count: int) -> None:
    """Requests, one after the other; without a tracer what the router does in any case."""
    for _ in range(count):
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


def cpu_us(setup: Setup, clock: SystemClock) -> tuple[float, float]:
    """Of a request: on the event loop's thread, and of the whole process until all is sent."""
    tracer = setup.tracer(clock)
    here, everywhere = time.thread_time(), time.process_time()
    play(tracer, clock, REQUESTS)
    here = time.thread_time() - here
    while setup.exporter is not None and setup.exporter.waiting:
        time.sleep(LOOK_S)
    everywhere = time.process_time() - everywhere
    return here / REQUESTS * 1e6, everywhere / REQUESTS * 1e6


async def lateness_ms(setup: Setup, clock: SystemClock) -> list[float]:
    """How much later than asked for the event loop wakes, beside LOAD requests at a time; what
    these take of it themselves is not counted. Of one round: in the middle one of many, others who
    use the machine count for as much with every setup."""
    late, tracer = [], setup.tracer(clock)
    load_at = time.perf_counter()
    for _ in range(TICKS):
        if time.perf_counter() >= load_at:
            play(tracer, clock, LOAD)
            load_at += LOAD_EVERY_S
        asked = time.perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        late.append((time.perf_counter() - asked) * 1e3)
    return late


def show_cpu(found: list[Setup], clock: SystemClock) -> None:
    costs = [[cpu_us(setup, clock) for setup in found] for _ in range(ROUNDS)]
    least = [tuple(map(min, zip(*rounds, strict=True))) for rounds in zip(*costs, strict=True)]
    (base, _), *_ = least
    print(f"CPU of a request in us, limit {LIMIT_US:.0f}     event loop   with export")
    for setup, (here, everywhere) in list(zip(found, least, strict=True))[1:]:
        print(f"  {setup.name:32} {here - base:10.1f} {everywhere - base:13.1f}")


def show_lateness(found: list[Setup], clock: SystemClock) -> None:
    print(f"Lateness of the event loop in ms, {LOAD / LOAD_EVERY_S:.0f} requests a second")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        cuts = [
            [statistics.quantiles(runner.run(lateness_ms(setup, clock)), n=100) for setup in found]
            for _ in range(ROUNDS)
        ]
    for setup, rounds in zip(found, zip(*cuts, strict=True), strict=True):
        middle = [statistics.median(column) for column in zip(*rounds, strict=True)]
        shown = "  ".join(f"p{part} {middle[part - 1]:6.3f}" for part in (50, 95, 99))
        print(f"  {setup.name:32} {shown}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    clock = SystemClock()
    gc.freeze()  # as the router's process does
    gc.set_threshold(GARBAGE, 20, 50)
    sys.setswitchinterval(SWITCH_S)
    with subprocess.Popen(
        [sys.executable, "-c", RECEIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as receiver:
        assert receiver.stdout is not None and receiver.stdin is not None
        found = setups(receiver.stdout.readline().strip(), clock)
        show_cpu(found, clock)
        show_lateness(found, clock)
        receiver.stdin.close()


if __name__ == "__main__":
    main()
