"""What measuring may grow to, whoever asks for it: labels, traces kept beside the sample."""

from __future__ import annotations

import random
from collections import Counter

from prometheus_client import CollectorRegistry

from router.flow.book import Book, Outcome, Result
from router.flow.classes import FlowKey
from router.pairs import MOST_PAIRS, PairBook
from router.tracing.config import TelemetryConfig
from router.tracing.tracer import KEPT_PER_S, Tracer
from router.tracing.visit import Visit
from tests.router.trails import Hands
from workers.wire import worker_pb2 as worker


class Kept:
    def __init__(self) -> None:
        self.visits: list[Visit] = []

    def offer(self, visit: Visit) -> None:
        self.visits.append(visit)


def traced(hands: Hands, seed: int = 1, **config: float) -> tuple[Tracer, Kept]:
    kept = Kept()
    told = TelemetryConfig(otlp_endpoint="http://nobody:1", **config)
    return Tracer(told, hands, random.Random(seed), kept), kept


def call(tracer: Tracer, *, failed: bool = False, traceparent: str = "") -> Visit:
    with tracer.visit("POST /v1/completions", "text_completion", traceparent) as visit:
        visit.answered(503 if failed else 200, failed=failed)
    return visit


def test_a_flood_of_errors_does_not_flood_who_stores_traces() -> None:
    hands = Hands()
    tracer, kept = traced(hands, sample_ratio=0.0)
    for second in range(5):
        hands(float(second))
        for _ in range(1000):
            call(tracer, failed=True)
    assert len(kept.visits) == 5 * KEPT_PER_S
    call(tracer)
    assert len(kept.visits) == 5 * KEPT_PER_S


def test_the_share_that_is_sampled_is_the_same_for_all_who_see_the_ids() -> None:
    ids = random.Random(3)
    given = [f"00-{ids.getrandbits(128):032x}-{ids.getrandbits(64):016x}-01" for _ in range(4)]
    tracer, kept = traced(Hands(), sample_ratio=0.25)
    calls = [call(tracer) for _ in range(4000)]
    assert 0.22 < len(kept.visits) / len(calls) < 0.28
    below = round(0.25 * 2**56)
    sampled = [int.from_bytes(visit.context.trace_id[-7:], "big") < below for visit in calls]
    assert sampled == [visit.context.sampled for visit in calls]
    assert all(call(tracer, traceparent=trace).context.sampled for trace in given)


def test_names_that_clients_make_up_are_one_label() -> None:
    book, registry = Book(["chat"], ["acme"]), CollectorRegistry()
    registry.register(book)
    for number in range(5000):
        flow = FlowKey("chat", f"made-up-{number}")
        book.passed(flow, Outcome.ADMITTED)
        book.ended(flow, Result.GOOD)
    book.passed(FlowKey("chat", "acme"), Outcome.ADMITTED)
    tenants = Counter(
        sample.labels["tenant"]
        for family in registry.collect()
        for sample in family.samples
        if "tenant" in sample.labels and sample.name.endswith("_total")
    )
    assert tenants == {"other": 2, "acme": 1}


def test_of_pairs_those_used_last_are_counted() -> None:
    pairs = PairBook()
    for number in range(MOST_PAIRS + 10):
        pairs.fetched(f"p-{number}", "d-0", worker.Admitted(fetched_bytes=1))
    names = [pair for pair, _ in pairs]
    assert len(names) == MOST_PAIRS and names[0] == ("p-10", "d-0")
    pairs.forget("p-10")
    assert ("p-10", "d-0") not in [pair for pair, _ in pairs]
