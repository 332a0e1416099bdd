"""What is kept of requests, and for how long."""

from __future__ import annotations

import pytest

from router.api import Call, Terms
from router.explain.answer import explain, explanation, recent
from router.explain.trail import MOST_EVENTS, MOST_WORDS, Trail
from router.explain.trails import Trails
from tests.router.trails import decision
from workers.core.clock import SystemClock
from workers.core.errors import RequestNotFound, Unavailable
from workers.core.request import Request, SamplingParams


def begin(trails: Trails, name: str, at: float, *also: str) -> Trail:
    call = Call("m", "w", SamplingParams(), name, terms=Terms(tenant="t"), also=also)
    trail = trails.begin(call, at)
    trail.asked(Request(f"{name}-0f", (1, 2), 2, SamplingParams()))
    return trail


def serve(trails: Trails, name: str, at: float, *also: str, replicas: int = 1) -> Trail:
    trail = begin(trails, name, at, *also)
    trail.let_in("standard", 0.0)
    trail.began()
    trail.placed(decision(*(f"replica-{i}" for i in range(replicas))))
    trails.end(trail, "ok", "")
    return trail


def names(trails: Trails) -> list[str]:
    return [one.id for one in recent(trails, 100).requests]


def test_it_is_found_by_every_name_newest_first() -> None:
    trails = Trails(SystemClock())
    first = serve(trails, "a", 1.0, "header-1", "answer-1")
    again = serve(trails, "a", 2.0, "header-2")
    assert trails.find("a") == [again, first]
    for name in ("a-0f", "header-1", "answer-1"):
        assert first in trails.find(name)
    assert trails.find("header-2") == [again]
    with pytest.raises(RequestNotFound, match="'b'"):
        explain(trails, "b")
    with pytest.raises(RequestNotFound):
        explain(trails, "")


def test_the_oldest_go_when_there_are_too_many() -> None:
    trails = Trails(SystemClock(), kept=3)
    for i in range(10):
        serve(trails, f"r{i}", float(i))
    assert names(trails) == ["r9", "r8", "r7"]


def test_fewer_are_kept_where_decisions_are_large() -> None:
    trails = Trails(SystemClock(), kept=100, rows=22)
    for i in range(10):
        serve(trails, f"r{i}", float(i), replicas=10)  # 11 rows: one more was refused
    assert names(trails) == ["r9", "r8"]


def test_a_flood_of_refused_requests_takes_no_room_from_served_ones() -> None:
    trails = Trails(SystemClock(), kept=8)
    serve(trails, "served", 0.0)
    for i in range(100):
        trails.end(begin(trails, f"refused-{i}", 1.0 + i), "resource_exhausted", "x" * 10_000)
    assert names(trails) == ["refused-99", "refused-98", "served"]
    (told,) = explain(trails, "refused-99").requests
    assert len(told.summary.error) == MOST_WORDS and told.summary.outcome == "resource_exhausted"
    assert not told.choices and not told.HasField("ttft")


def test_who_is_under_way_can_be_explained_and_is_not_dropped() -> None:
    trails = Trails(SystemClock(), kept=1)
    running = begin(trails, "running", 0.0)
    serve(trails, "one", 1.0)
    serve(trails, "two", 2.0)
    assert names(trails) == ["two", "running"]
    assert recent(trails, 1).requests[0].id == "two"
    assert explain(trails, "running").requests[0].summary.outcome == ""
    trails.end(running, "ok", "")


def test_one_request_cannot_grow_without_end() -> None:
    trail = Trail(SystemClock().now, 0.0)
    trail.began()
    for _ in range(2 * MOST_EVENTS):
        trail.failed(Unavailable("again " * 1000))
    assert len(trail.events) == MOST_EVENTS
    told = explanation(trail, 1.0)
    assert told.left_out == 1 + MOST_EVENTS
    assert max(len(line.what) for line in told.story) < MOST_WORDS + 50
