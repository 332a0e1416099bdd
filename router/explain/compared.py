"""What placement predicted for a request, beside what then happened."""

from __future__ import annotations

from collections.abc import Iterator

from router.explain import waterfall
from router.explain.trail import Event, Opened, Placed, Prefilled, Timed, Trail
from workers.wire import admin_pb2 as admin


def compared(trail: Trail) -> Iterator[admin.Compared]:
    """Of the attempt that said the first token, and of the one that said the second."""
    tries = waterfall.attempts(trail)
    if trail.first_at is not None:
        yield from _prefill(trail, waterfall.attempt_before(tries, trail.first_at))
    if trail.second_at is not None:
        yield from _decode(trail, waterfall.attempt_before(tries, trail.second_at))


def _prefill(trail: Trail, attempt: list[Event]) -> Iterator[admin.Compared]:
    placed, opened = waterfall.last(attempt, Placed), waterfall.last(attempt, Opened)
    prefilled = waterfall.last(attempt, Prefilled)
    if placed is None or opened is None or prefilled is None or trail.first_at is None:
        return
    score = placed.decision.score
    yield _tokens("cached at prefill", placed.decision.cached_tokens, opened.cached_tokens)
    yield _seconds("prefill queue", score.wait_s, prefilled.queue_s)
    yield _seconds("prefill compute", score.work_s, prefilled.prefill_s)
    before_s = placed.at - trail.started  # not predicted: it has happened by then
    yield _seconds("TTFT", before_s + score.total_s, trail.first_at - trail.started)


def _decode(trail: Trail, attempt: list[Event]) -> Iterator[admin.Compared]:
    redeemed, poured = waterfall.binding(attempt), waterfall.first_gap(trail)
    if redeemed is None or poured is None or redeemed[1].at > (trail.second_at or 0.0):
        return
    bound, fetched = redeemed
    decision = bound.decision
    place = decision.place
    wait_s, step_s = decision.among.wait_s[place], decision.among.work_s[place]
    transfer_s = decision.among.transfer_s[place]
    for event in attempt:
        if isinstance(event, Timed) and event.decision is decision:  # it was bound early
            transfer_s = wait_s = event.overlap.early_gap_s
    yield _tokens("cached at decode", decision.cached_tokens, fetched.admitted.cached_tokens)
    yield _seconds("transfer, exposed", transfer_s, poured.part_s("transfer"))
    yield _seconds("first decode step", step_s, poured.part_s("first decode step"))
    yield _seconds("FIRST_GAP", wait_s + step_s, poured.total_s)


def _seconds(name: str, predicted: float, actual: float) -> admin.Compared:
    return admin.Compared(name=name, unit="s", predicted=predicted, actual=actual)


def _tokens(name: str, predicted: int, actual: int) -> admin.Compared:
    return admin.Compared(name=name, unit="tokens", predicted=predicted, actual=actual)
