"""Where the time to the first token went, and the time from it to the second.

Both are cut along what the router timed itself; what a worker says of its own (seconds in a queue,
in a prefill, of a transfer) is laid into the router's interval around it, from its end, and never
reaches out of it. So no two parts overlap, and what is left, "other", is at least 0: messages on
their way, and the router's own work between them.

    started .. in line .. let in .. [failed attempts] .. placed .. |queue|compute| first token
    first token .. [hold] .. bound |admission| .. |transfer| admitted .. second token

What runs beside the prefill, bound early, is no part of either but for what sticks out after the
first token: all of that is waiting for pages or for KV.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from router.explain.trail import Began, Bound, Event, Fetched, Placed, Prefilled, Trail

TTFT_PARTS = ("tokenise", "admission queue", "placing", "prefill queue", "prefill compute")
GAP_PARTS = ("ticket hold", "decode admission", "transfer", "first decode step")
SELDOM = "failed attempts"
OTHER = "other"
ORDER = (*TTFT_PARTS[:2], SELDOM, *TTFT_PARTS[2:], *GAP_PARTS)

E = TypeVar("E", bound=Event)


class _Span(NamedTuple):
    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Waterfall:
    """`parts` in the order of events, "other" last; they sum to `total_s`."""

    total_s: float
    parts: tuple[tuple[str, float], ...]

    def part_s(self, name: str) -> float:
        return dict(self.parts).get(name, 0.0)


def ttft(trail: Trail) -> Waterfall | None:
    """None: no token has come."""
    if trail.first_at is None or trail.let_in_at is None:
        return None
    in_line = trail.let_in_at - trail.waited_s
    spans = [
        _Span("tokenise", trail.started, in_line),
        _Span("admission queue", in_line, trail.let_in_at),
    ]
    attempt = attempt_before(trail, trail.first_at)
    if attempt[0] != attempts(trail)[0][0]:
        spans.append(_Span(SELDOM, trail.let_in_at, attempt[0].at))
    spans += _until_token(attempt)
    return _pour(spans, trail.started, trail.first_at, TTFT_PARTS)


def first_gap(trail: Trail) -> Waterfall | None:
    """None: there is no second token."""
    if trail.first_at is None or trail.second_at is None:
        return None
    attempt = attempt_before(trail, trail.second_at)
    spans = [_Span(SELDOM, trail.first_at, attempt[0].at)]
    spans += _until_token(attempt)
    spans += _after_token(attempt, trail.second_at)
    return _pour(spans, trail.first_at, trail.second_at, GAP_PARTS)


def attempts(trail: Trail) -> list[list[Event]]:
    """Each begins with Began."""
    found: list[list[Event]] = []
    for event in trail.events:
        if isinstance(event, Began):
            found.append([])
        found[-1].append(event)
    return found


def attempt_before(trail: Trail, until: float) -> list[Event]:
    """The one that was under way then."""
    return [attempt for attempt in attempts(trail) if attempt[0].at <= until][-1]


def last(events: Sequence[Event], kind: type[E]) -> E | None:
    return next((event for event in reversed(events) if isinstance(event, kind)), None)


def binding(attempt: Sequence[Event]) -> tuple[Bound, Fetched] | None:
    """The call that redeemed the ticket of its prefill. Moves come later and are none."""
    bound: Bound | None = None
    for event in attempt:
        if isinstance(event, Bound) and not event.moving:
            bound = event
        elif isinstance(event, Fetched) and not event.moving:
            assert bound is not None
            return bound, event
    return None


def _until_token(attempt: Sequence[Event]) -> Iterator[_Span]:
    placed, prefilled = last(attempt, Placed), last(attempt, Prefilled)
    if placed is None:
        return
    yield _Span("placing", attempt[0].at, placed.at)
    if prefilled is not None:
        computing = max(placed.at, prefilled.at - prefilled.prefill_s)
        yield _Span("prefill queue", max(placed.at, computing - prefilled.queue_s), computing)
        yield _Span("prefill compute", computing, prefilled.at)


def _after_token(attempt: Sequence[Event], until: float) -> Iterator[_Span]:
    prefilled, redeemed = last(attempt, Prefilled), binding(attempt)
    if prefilled is None:
        return
    token_at = prefilled.at
    if redeemed is None:  # one worker does both
        yield _Span("first decode step", token_at, until)
        return
    bound, fetched = redeemed
    pages_at = min(bound.at + fetched.admitted.admit_wait_s, fetched.at)
    if bound.at < token_at:  # early: nothing but pages and KV is waited for
        fetching_at = max(token_at, pages_at)
    else:
        fetching_at = max(pages_at, fetched.at - fetched.admitted.transfer_s)
    yield _Span("ticket hold", token_at, bound.at)
    yield _Span("decode admission", max(token_at, bound.at), pages_at)
    yield _Span("transfer", fetching_at, fetched.at)
    yield _Span("first decode step", max(token_at, fetched.at), until)


def _pour(spans: Sequence[_Span], start: float, end: float, always: Sequence[str]) -> Waterfall:
    """What of the spans lies between `start` and `end`; names in `always` stand there with 0."""
    seconds = dict.fromkeys(ORDER, 0.0)
    for span in spans:
        seconds[span.name] += max(0.0, min(span.end, end) - max(span.start, start))
    parts = [(name, length) for name, length in seconds.items() if length > 0 or name in always]
    other = max(0.0, end - start - sum(seconds.values()))
    return Waterfall(end - start, (*parts, (OTHER, other)))
