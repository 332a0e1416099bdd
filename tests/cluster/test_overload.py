"""More requests than can be served, in virtual time: the real line, room and placement."""

from __future__ import annotations

import functools

from cluster.simulator.overload import Seen, Stream, play
from router.flow.book import Result
from router.flow.classes import SloConfig

SECONDS = 20.0
WORKERS = 4


def stream(slo_class: str, load: float, tenant: str = "") -> Stream:
    return Stream(slo_class, load, tenant, end_s=SECONDS)


@functools.cache
def interactive(load: float) -> Seen:
    return play(SloConfig(), [stream("interactive", load)], workers=WORKERS)[0]


def test_in_overload_goodput_stays_near_its_peak() -> None:
    runs = {load: interactive(load) for load in (1.0, 1.4, 2.0, 3.0)}
    counts = {load: seen.results[Result.GOOD] for load, seen in runs.items()}
    work = {load: seen.work_s for load, seen in runs.items()}
    assert work[1.4] > 0.85 * WORKERS * SECONDS, "the peak is what the fleet can do"
    for most in (2.0, 3.0):  # of many requests more are short, so that counts go on rising
        assert counts[most] >= 0.9 * max(count for load, count in counts.items() if load <= most)
        assert work[most] >= 0.9 * max(work.values())
    (free,) = play(SloConfig(), [stream("interactive", 2.0)], workers=WORKERS, held=False)
    assert free.results[Result.GOOD] < 0.2 * counts[2.0], "without the line everybody is late"


def test_all_that_is_refused_is_told_when_to_come_back_and_is_mostly_served_then() -> None:
    assert all(1.0 <= retry_s <= 3600.0 for retry_s in interactive(3.0).retry_s)
    burst = Stream("interactive", 1.7, end_s=20, returns=True)
    calm = Stream("interactive", 0.5, "calm", end_s=300)
    seen, other = play(SloConfig(), [burst, calm], workers=WORKERS)
    assert seen.returned == len(seen.retry_s) > 100
    assert seen.served_on_return > 0.55 * seen.returned
    assert other.attained > 0.98, "who comes back does not harm the others"


def test_neither_batch_nor_another_tenant_harms_the_interactive_requests_of_one() -> None:
    calm = stream("interactive", 0.3, "calm")
    flood, batch = stream("interactive", 1.7, "flood"), stream("batch", 1.0, "jobs")
    (alone,) = play(SloConfig(), [calm])
    beside = play(SloConfig(), [calm, flood, batch])
    assert beside[0].attained >= alone.attained - 0.01
    assert not beside[0].refused
    assert beside[1].refused > 0.2, "who floods is told to wait"


def test_batch_fills_what_is_left_and_only_that() -> None:
    batch = stream("batch", 1.0)
    half, filled = play(SloConfig(), [stream("interactive", 0.4), batch])
    assert half.attained > 0.99 and filled.in_time > 0.5 * filled.asked
    assert not filled.refused, "its longest wait is an hour"
    full, starved = play(SloConfig(), [stream("interactive", 2.0), batch])
    assert full.results[Result.GOOD] > 0.9 * interactive(2.0).results[Result.GOOD]
    assert starved.in_time < 0.05 * starved.asked
