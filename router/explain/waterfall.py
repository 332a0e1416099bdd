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
Attempt = list[Event]


class Span(NamedTuple):
    """A part, where it lies on the router's clock."""

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
    return _pour(ttft_spans(trail, attempts(trail)), trail.started, trail.first_at, TTFT_PARTS)


def ttft_spans(trail: Trail, tries: Sequence[Attempt]) -> list[Span]:
    """None overlaps another one, or reaches out of the time to the first token, which has come.
    `tries`: its attempts()."""
    assert trail.first_at is not None and trail.let_in_at is not None
    in_line = trail.let_in_at - trail.waited_s
    spans = [
        Span("tokenise", trail.started, in_line),
        Span("admission queue", in_line, trail.let_in_at),
    ]
    attempt = attempt_before(tries, trail.first_at)
    if attempt[0] != tries[0][0]:
        spans.append(Span(SELDOM, trail.let_in_at, attempt[0].at))
    spans += _until_token(attempt)
    return _within(spans, trail.started, trail.first_at)


def first_gap(trail: Trail) -> Waterfall | None:
    """None: there is no second token."""
    if trail.first_at is None or trail.second_at is None:
        return None
    return _pour(gap_spans(trail, attempts(trail)), trail.first_at, trail.second_at, GAP_PARTS)


def gap_spans(trail: Trail, tries: Sequence[Attempt]) -> list[Span]:
    """The same, of the time from the first token to the second."""
    assert trail.first_at is not None and trail.second_at is not None
    attempt = attempt_before(tries, trail.second_at)
    spans = [Span(SELDOM, trail.first_at, attempt[0].at)]
    spans += _until_token(attempt)
    spans += _after_token(attempt, trail.second_at)
    return _within(spans, trail.first_at, trail.second_at)


def attempts(trail: Trail) -> list[Attempt]:
    """Each begins with Began."""
    found: list[Attempt] = []
    for event in trail.events:
        if isinstance(event, Began):
            found.append([])
        found[-1].append(event)
    return found


def attempt_before(tries: Sequence[Attempt], until: float) -> Attempt:
    """The one that was under way then."""
    return [attempt for attempt in tries if attempt[0].at <= until][-1]


def last(events: Sequence[Event], kind: type[E]) -> E | None:
    for event in reversed(events):
        if isinstance(event, kind):
            return event
    return None


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


def _until_token(attempt: Sequence[Event]) -> Iterator[Span]:
    placed, prefilled = last(attempt, Placed), last(attempt, Prefilled)
    if placed is None:
        return
    yield Span("placing", attempt[0].at, placed.at)
    if prefilled is not None:
        computing = max(placed.at, prefilled.at - prefilled.prefill_s)
        yield Span("prefill queue", max(placed.at, computing - prefilled.queue_s), computing)
        yield Span("prefill compute", computing, prefilled.at)


def _after_token(attempt: Sequence[Event], until: float) -> Iterator[Span]:
    prefilled, redeemed = last(attempt, Prefilled), binding(attempt)
    if prefilled is None:
        return
    token_at = prefilled.at
    if redeemed is None:  # one worker does both
        yield Span("first decode step", token_at, until)
        return
    bound, fetched = redeemed
    pages_at = min(bound.at + fetched.admitted.admit_wait_s, fetched.at)
    if bound.at < token_at:  # early: nothing but pages and KV is waited for
        fetching_at = max(token_at, pages_at)
    else:
        fetching_at = max(pages_at, fetched.at - fetched.admitted.transfer_s)
    yield Span("ticket hold", token_at, bound.at)
    yield Span("decode admission", max(token_at, bound.at), pages_at)
    yield Span("transfer", fetching_at, fetched.at)
    yield Span("first decode step", max(token_at, fetched.at), until)


def _within(spans: Sequence[Span], start: float, end: float) -> list[Span]:
    return [
        Span(name, max(begun, start), min(over, end))
        for name, begun, over in spans
        if begun < over and begun < end and over > start
    ]


def _pour(spans: Sequence[Span], start: float, end: float, always: Sequence[str]) -> Waterfall:
    """What of the time the spans take; names in `always` stand there with 0."""
    seconds = dict.fromkeys(ORDER, 0.0)
    for span in spans:
        seconds[span.name] += span.end - span.start
    parts = [(name, length) for name, length in seconds.items() if length > 0 or name in always]
    other = max(0.0, end - start - sum(seconds.values()))
    return Waterfall(end - start, (*parts, (OTHER, other)))
