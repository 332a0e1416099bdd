"""What one worker measures, as Prometheus sees it. Histograms are named by what is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Meter:
    """One registry a worker; nothing global."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._queue = self._seconds("queue_wait", "Arrival to the first step")
        self._prefill = self._seconds("prefill_compute", "First step to the first token")
        self._admit = self._seconds("admit_wait", "Waiting for pages on the decode worker")
        self._transfer = self._seconds("transfer", "Fetching KV blocks")
        self._bytes = Counter(
            "kvasir_worker_transfer_bytes", "KV bytes fetched", registry=self.registry
        )
        self._tokens = Counter(
            "kvasir_worker_generated_tokens", "Tokens sampled", registry=self.registry
        )
        self._expired = Counter(
            "kvasir_worker_tickets_expired", "Leases that ran out", registry=self.registry
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
        self._moved = Counter(
            "kvasir_worker_experts_moved", "Slots whose expert changed", registry=self.registry
        )

    def _seconds(self, name: str, what: str) -> Histogram:
        return Histogram(
            f"kvasir_worker_{name}_seconds", what, buckets=SECONDS, registry=self.registry
        )

    def gauge(self, name: str, what: str, read: Callable[[], float]) -> None:
        """A figure read when it is scraped."""
        Gauge(f"kvasir_worker_{name}", what, registry=self.registry).set_function(read)

    def prefilled(self, queue_s: float, prefill_s: float) -> None:
        self._queue.observe(queue_s)
        self._prefill.observe(prefill_s)

    def fetched(self, admit_wait_s: float, transfer_s: float, num_bytes: int) -> None:
        self._admit.observe(admit_wait_s)
        self._transfer.observe(transfer_s)
        self._bytes.inc(num_bytes)

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

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Expose /metrics; returns what stops it. Raises OSError when the port is taken."""
        server, thread = start_http_server(port, addr=host, registry=self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop
