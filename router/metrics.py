"""What the router measures, for Prometheus. One object and one registry; nothing global."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from router.counted_histogram import CountedHistogram
from router.pairs import PairBook
from router.placement.binding import Timing
from router.placement.decision import Decision
from router.replica import Replica
from workers.core.errors import HTTP_STATUS, KvasirError
from workers.core.roles import RoleName
from workers.wire import worker_pb2 as worker

Exemplar = dict[str, str] | None  # leads from a measurement to its trace
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class RouterMetrics:
    """A PoolListener too: it shows the KV pages of each replica as last reported."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.total = 0
        self.failed = 0
        self.tokens = 0
        self.pairs = PairBook()
        registry.register(self.pairs)
        self._roles: dict[str, RoleName] = {}  # by replica, as its gauges say
        # Asking for a labelled one costs more than counting does, so those of requests are kept.
        requests = Counter(
            "kvasir_requests", "requests by how they ended", ["outcome"], registry=registry
        )
        self._requests = cache(requests.labels)
        self._in_flight = Gauge(
            "kvasir_requests_in_flight", "requests that came and are not over", registry=registry
        )
        ttft = Histogram(
            "kvasir_ttft_seconds",
            "from a request's arrival to its first token",
            ["class"],
            registry=registry,
            buckets=_SLOW,
        )
        self._ttft = cache(ttft.labels)
        self._itl = CountedHistogram(
            "kvasir_itl_seconds",
            "between two tokens of a request; the first gap is one of them",
            "class",
            registry=registry,
            buckets=_FAST,
        )
        self._gap = Histogram(
            "kvasir_first_gap_seconds",
            "from a request's first token to its second",
            registry=registry,
            buckets=_FAST,
        )
        self._e2e = Histogram(
            "kvasir_e2e_seconds", "whole requests that ended well", registry=registry, buckets=_SLOW
        )
        self._queue = Histogram(
            "kvasir_queue_seconds",
            "in a worker's queue, before its prefill began",
            registry=registry,
            buckets=_SLOW,
        )
        queue_wait = Histogram(
            "kvasir_queue_wait_seconds",
            "in the line in front of the cluster, of those who were let in",
            ["class"],
            registry=registry,
            buckets=_SLOW,
        )
        self._queue_wait = cache(queue_wait.labels)
        self._prefill = Histogram(
            "kvasir_prefill_seconds",
            "from the first step of a prefill to its token",
            registry=registry,
            buckets=_SLOW,
        )
        self._admit = Histogram(
            "kvasir_admit_wait_seconds",
            "of a bound ticket, for pages on the decode worker",
            registry=registry,
            buckets=_FAST,
        )
        self._transfer = Histogram(
            "kvasir_transfer_seconds",
            "fetching KV blocks from the worker that computed them",
            registry=registry,
            buckets=_FAST,
        )
        self._transfer_bytes = Counter(
            "kvasir_transfer_bytes", "KV bytes fetched", ["transport"], registry=registry
        )
        self._retries = Counter(
            "kvasir_retries",
            "failures after which a phase was tried again",
            ["phase"],
            registry=registry,
        )
        self._bindings = Counter(
            "kvasir_bindings", "when tickets were bound, and why", ["timing"], registry=registry
        )
        self._placing = Histogram(
            "kvasir_placing_seconds",
            "from the start of an attempt until a replica is chosen",
            registry=registry,
            buckets=_FAST,
        )
        ways = Counter(
            "kvasir_ways", "how requests went through the workers", ["way"], registry=registry
        )
        self._ways = cache(ways.labels)
        saved = Counter(
            "kvasir_way_saved_seconds",
            "predicted cost of the best other way, less that of the one taken",
            ["way"],
            registry=registry,
        )
        self._saved = cache(saved.labels)
        self._moves = Counter(
            "kvasir_moves", "running sequences offered to others", ["outcome"], registry=registry
        )
        self._exposed = Histogram(
            "kvasir_transfer_exposed_seconds",
            "fetching KV, what of it no prefill hid",
            registry=registry,
            buckets=_FAST,
        )
        self._refetched = Counter(
            "kvasir_refetched_blocks",
            "KV blocks that came with a wrong checksum",
            registry=registry,
        )
        self._prompt = Counter(
            "kvasir_prompt_tokens", "prompt tokens, cached ones too", registry=registry
        )
        self._hit = Counter(
            "kvasir_prefix_hit_tokens", "prompt tokens found in a prefix cache", registry=registry
        )
        self._predicted = Counter(
            "kvasir_prefix_predicted_tokens", "hits that placement expected", registry=registry
        )
        self._missed = Counter(
            "kvasir_prefix_missed_tokens", "expected hits that were none", registry=registry
        )
        self._unforeseen = Counter(
            "kvasir_prefix_unforeseen_tokens", "hits nobody expected", registry=registry
        )
        self._output = Counter("kvasir_output_tokens", "tokens generated", registry=registry)
        labels = ["replica", "role"]
        self._used = Gauge("kvasir_kv_pages_used", "KV pages in use", labels, registry=registry)
        self._cached = Gauge(
            "kvasir_kv_pages_cached", "free KV pages with a prefix", labels, registry=registry
        )
        self._pages = Gauge("kvasir_kv_pages", "KV pages there are", labels, registry=registry)
        self._up = Gauge("kvasir_replica_up", "1 = takes work", labels, registry=registry)
        self._seqs = Gauge(
            "kvasir_max_seqs", "sequences in a batch, as set now", labels, registry=registry
        )
        self._step = Gauge(
            "kvasir_step_tokens", "tokens of a step, as set now", labels, registry=registry
        )

    def watch_redis(self, up: Callable[[], bool]) -> None:
        """Only a router that was given one."""
        gauge = Gauge("kvasir_redis_up", "1 = Redis answers this router", registry=self.registry)
        gauge.set_function(up)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    # of one request

    def started(self) -> None:
        self._in_flight.inc()

    def ended(
        self, outcome: str, seconds: float, *, failed: bool, exemplar: Exemplar = None
    ) -> None:
        """`failed`: by our fault, not the client's."""
        self._in_flight.dec()
        self._count(outcome, failed)
        if outcome == "ok":
            self._e2e.observe(seconds, exemplar)

    def refused(self, error: KvasirError) -> None:
        """At the door: it never was a request that could be started."""
        self._count(error.code.lower(), HTTP_STATUS[error.code] >= 500)

    def _count(self, outcome: str, failed: bool) -> None:
        self.total += 1
        self.failed += failed
        self._requests(outcome).inc()

    def queue_waited(self, slo_class: str, seconds: float, exemplar: Exemplar = None) -> None:
        self._queue_wait(slo_class).observe(seconds, exemplar)

    def first_token(self, slo_class: str, seconds: float, exemplar: Exemplar = None) -> None:
        self._ttft(slo_class).observe(seconds, exemplar)

    def second_token(self, seconds: float, exemplar: Exemplar = None) -> None:
        self._gap.observe(seconds, exemplar)

    def next_tokens(self, slo_class: str, count: int, seconds: float) -> None:
        """`count` tokens came together, `seconds` after the ones before."""
        self._itl.observe(slo_class, seconds / count, count)

    def generated(self, count: int) -> None:
        self.tokens += count
        self._output.inc(count)

    def opened(self, prompt_tokens: int, predicted: int, cached: int) -> None:
        self._prompt.inc(prompt_tokens)
        self._predicted.inc(predicted)
        self._hit.inc(cached)
        self._missed.inc(max(0, predicted - cached))
        self._unforeseen.inc(max(0, cached - predicted))

    def prefilled(self, queue_s: float, prefill_s: float, exemplar: Exemplar = None) -> None:
        self._queue.observe(queue_s, exemplar)
        self._prefill.observe(prefill_s, exemplar)

    def admitted(
        self, admitted: worker.Admitted, sender: str, receiver: str, exemplar: Exemplar = None
    ) -> None:
        self.pairs.fetched(sender, receiver, admitted)
        self._admit.observe(admitted.admit_wait_s, exemplar)
        self._transfer.observe(admitted.transfer_s, exemplar)
        self._exposed.observe(admitted.exposed_s, exemplar)
        self._refetched.inc(admitted.refetched_blocks)
        self._transfer_bytes.labels(admitted.transport or "none").inc(admitted.fetched_bytes)

    def retried(self, phase: str) -> None:
        self._retries.labels(phase).inc()

    def went(self, decision: Decision, placing_s: float) -> None:
        """A request was placed, one way or the other."""
        self._placing.observe(placing_s)
        role = decision.replica.role
        way = f"alone on {role}" if decision.alone else "split"
        self._ways(way).inc()
        other = decision.counterfactual
        if other is not None:
            cost_s = decision.among.cost_s
            self._saved(way).inc(max(0.0, cost_s[other] - cost_s[decision.place]))

    def timed(self, timing: Timing) -> None:
        """A ticket was opened, and whether to bind it at once was decided."""
        self._bindings.labels(timing.value).inc()

    def moved(self, outcome: str) -> None:
        """`moved`, or `stayed` where nobody took it."""
        self._moves.labels(outcome).inc()

    # of the pool

    def reported(self, replica: Replica, load: worker.LoadReport) -> None:
        if self._roles.get(replica.id) != replica.role:
            self._clear(replica)  # in the role that it had before
            self._roles[replica.id] = replica.role
        self._used.labels(replica.id, replica.role).set(load.blocks_used)
        self._cached.labels(replica.id, replica.role).set(load.blocks_cached)
        self._pages.labels(replica.id, replica.role).set(load.blocks_total)
        self._up.labels(replica.id, replica.role).set(replica.up)
        self._seqs.labels(replica.id, replica.role).set(load.seqs_limit)
        self._step.labels(replica.id, replica.role).set(load.step_tokens)

    def lost(self, replica: Replica) -> None:
        self._up.labels(replica.id, replica.role).set(0)

    def forgotten(self, replica: Replica) -> None:
        self.pairs.forget(replica.id)
        self._clear(replica)

    def _clear(self, replica: Replica) -> None:
        self._roles.pop(replica.id, None)
        gauges = (self._used, self._cached, self._pages, self._up, self._seqs, self._step)
        for gauge in gauges:
            for role in get_args(RoleName):
                with suppress(KeyError):  # it never said anything in this role
                    gauge.remove(replica.id, role)
