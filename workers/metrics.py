"""What one worker measures, as Prometheus sees it. Histograms are named by what is measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from workers.core.step_work import StepWork
from workers.core.trace import exemplar

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SCRAPE_S = 5.0


class Meter:
    """One registry a worker; nothing global."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._queue = self._seconds("queue_wait", "Arrival to the first step")
        self._prefill = self._seconds("prefill_compute", "First step to the first token")
        self._admit = self._seconds("admit_wait", "Waiting for pages on the decode worker")
        self._transfer = self._seconds("transfer", "Fetching KV blocks")
        self._exposed = self._seconds(
            "transfer_exposed", "Fetching after everything was computed: what nothing hid"
        )
        self._bytes = self._count("transfer_bytes", "KV bytes fetched")
        self._fetches = self._count("fetches", "Fetches that ended well", "transport")
        self._fetches_failed = self._count("fetches_failed", "Fetches that broke off", "error")
        self._steps = Histogram(
            "kvasir_worker_step_seconds",
            "Steps of the engine, by what they compute: prompts, next tokens, or both",
            ["kind"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._batch = Histogram(
            "kvasir_worker_decode_batch_seqs",
            "Sequences that a step gave their next token",
            buckets=BATCHES,
            registry=self.registry,
        )
        self._computed = self._count("prefill_tokens", "Prompt tokens computed, cached ones not")
        self._tokens = self._count("generated_tokens", "Tokens sampled")
        self._expired = self._count("tickets_expired", "Leases that ran out")
        self._moved_in = self._count("moved_in", "Running sequences taken over from others")
        self._moved_out = self._count("moved_out", "Running sequences that others took over")
        self._drains = self._count("drains", "Drains that were begun")
        self._cleared = self._seconds(
            "role_change", "From a new role to the end of the last call that does not fit it"
        )

        self._hottest = Gauge(
            "kvasir_worker_hottest_expert_ratio",
            "Load of a layer's busiest expert over the mean, since experts were last balanced",
            ["layer"],
            registry=self.registry,
        )
        self._imbalance = Gauge(
            "kvasir_worker_expert_imbalance_ratio",
            "Load of the busiest expert parallel rank over the mean: before and after balancing",
            ["when"],
            registry=self.registry,
        )
        self._moved = self._count("experts_moved", "Slots whose expert changed")

    def _seconds(self, name: str, what: str) -> Histogram:
        return Histogram(
            f"kvasir_worker_{name}_seconds", what, buckets=SECONDS, registry=self.registry
        )

    def _count(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"kvasir_worker_{name}", what, labels, registry=self.registry)

    def gauge(self, name: str, what: str, read: Callable[[], float]) -> None:
        """A figure read when it is scraped."""
        Gauge(f"kvasir_worker_{name}", what, registry=self.registry).set_function(read)

    def total(self, name: str, what: str, read: Callable[[], float]) -> None:
        """One that only grows and is counted elsewhere."""
        self.registry.register(_Total(f"kvasir_worker_{name}", what, read))

    def stepped(self, work: StepWork, seconds: float) -> None:
        if work.decode_seqs:
            self._batch.observe(work.decode_seqs)
        self._computed.inc(work.prefill_tokens)
        kind = ("mixed" if work.decode_seqs else "prefill") if work.prefill_tokens else "decode"
        self._steps.labels(kind).observe(seconds)

    def prefilled(self, queue_s: float, prefill_s: float, traceparent: str = "") -> None:
        """`traceparent`: of the request, as of all that take it."""
        self._queue.observe(queue_s, exemplar(traceparent))
        self._prefill.observe(prefill_s, exemplar(traceparent))

    def fetched(
        self,
        transport: str,
        num_bytes: int,
        *,
        wait_s: float,
        transfer_s: float,
        exposed_s: float,
        traceparent: str = "",
    ) -> None:
        self._admit.observe(wait_s, exemplar(traceparent))
        self._transfer.observe(transfer_s, exemplar(traceparent))
        self._exposed.observe(exposed_s, exemplar(traceparent))
        self._bytes.inc(num_bytes)
        self._fetches.labels(transport).inc()

    def fetch_failed(self, error: str) -> None:
        self._fetches_failed.labels(error).inc()

    def moved_in(self) -> None:
        self._moved_in.inc()

    def moved_out(self) -> None:
        self._moved_out.inc()

    def drain_begun(self) -> None:
        self._drains.inc()

    def role_changed(self, cleared_s: float) -> None:
        self._cleared.observe(cleared_s)

    def balanced(self, hottest: Sequence[float], before: float, after: float, moved: int) -> None:
        for layer, ratio in enumerate(hottest):
            self._hottest.labels(str(layer)).set(ratio)
        self._imbalance.labels("before").set(before)
        self._imbalance.labels("after").set(after)
        self._moved.inc(moved)

    def generated(self, num_tokens: int) -> None:
        self._tokens.inc(num_tokens)

    def ticket_expired(self) -> None:
        self._expired.inc()

    def serve(
        self, host: str, port: int, ready: Callable[[], bool]
    ) -> tuple[int, Callable[[], None]]:
        """Expose /metrics, and /ready for probes; the port, and what stops it. Raises OSError when
        the port is taken."""
        server, thread = start_http_server(port, addr=host, registry=_OnLoop(self.registry))
        metrics: Any = server.get_app()

        def app(environ: dict[str, Any], respond: Callable[..., object]) -> Iterable[bytes]:
            if environ["PATH_INFO"] != "/ready":
                answer: Iterable[bytes] = metrics(environ, respond)
                return answer
            respond("200 OK" if ready() else "503 Service Unavailable", [])
            return []

        server.set_app(app)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return server.server_port, stop


class _Total(Collector):
    def __init__(self, name: str, what: str, read: Callable[[], float]) -> None:
        self._name = name
        self._what = what
        self._read = read

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(self._name, self._what, self._read())


class _OnLoop(Collector):
    """What gauges read lives on the event loop, and reading it may change it: a pair that has
    failed is retired by who looks first."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._loop = asyncio.get_running_loop()

    def collect(self) -> Iterable[Metric]:
        """For the thread of a scrape."""
        return asyncio.run_coroutine_threadsafe(self._collected(), self._loop).result(SCRAPE_S)

    async def _collected(self) -> list[Metric]:
        return list(self._registry.collect())
