"""The spans of one visit, drawn from the trails of its requests when all is over.

    POST /v1/chat/completions                  the door
      chat MODEL                               a request; one of each sample
        tokenise, admission queue
        failed attempts                        those before the one that spoke
        attempt                                linked to the one before
          placing
          prefill              on a worker
            prefill queue, prefill compute
          ticket hold
          bind                 on a worker     one that failed; the next call is linked to it
          decode               on a worker
            decode admission, transfer, first decode step, streaming
          migration                            linked to the decode it takes over from
          decode               on a worker     linked to its migration

All times are the router's clock: workers send durations, which the waterfall lays into the
router's own intervals, so hosts whose clocks differ are no concern. Spans with `kvasir.part` are
the parts of the waterfall: those of "ttft" sum to the time to the first token, those of
"first_gap" to the time from it to the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from router.explain import waterfall
from router.explain.trail import (
    Bound,
    Event,
    Failed,
    Fetched,
    Moved,
    Offered,
    Opened,
    Placed,
    Prefilled,
    Stayed,
    Trail,
    Unbound,
)
from router.replica import Replica
from router.tracing.visit import Asked, Attributes, Value, Visit

PROVIDER = "kvasir"
IN_PREFILL = ("prefill queue", "prefill compute")
IN_DECODE = ("decode admission", "transfer", "first decode step")
LEAST_S = 1e-4  # shorter gaps between parts have no span

Parts = Sequence[tuple[waterfall.Span, str]]  # and of which sum each is a part


class Place(NamedTuple):
    """A worker."""

    replica: str
    pool: str


@dataclass(eq=False, slots=True)
class Span:
    """The root has no parent. `place` None = the router. `error`: what went wrong."""

    id: bytes
    parent: Span | None
    name: str
    start: float
    end: float
    attributes: Attributes = ()
    place: Place | None = None
    links: tuple[Span, ...] = ()
    error: str = ""


def spans(visit: Visit) -> list[Span]:
    """The root first, then each after its parent and after those it is linked to."""
    error = f"{visit.status}" if visit.failed else ""
    protocol = "http" if isinstance(visit.status, int) else "rpc"
    root = Span(
        visit.context.span_id,
        None,
        visit.name,
        visit.started,
        visit.ended,
        (*visit.attributes, (f"{protocol}.response.status_code", visit.status)),
        error=error,
    )
    found = [root]
    for asked in visit.asked:
        _Drawing(visit, asked, root, found).draw()
    return found


class _Drawing:
    """Of one request."""

    def __init__(self, visit: Visit, asked: Asked, root: Span, found: list[Span]) -> None:
        self._visit = visit
        self._trail = trail = asked.trail
        self._attempts = waterfall.attempts(trail)
        self._found = found
        self._end = visit.ended if trail.ended_at is None else trail.ended_at
        assert trail.trace is not None
        self._request = Span(
            trail.trace.span_id,
            root,
            f"{visit.operation} {asked.model}",
            trail.started,
            self._end,
            tuple(_attributes(visit.operation, asked, self._attempts)),
            error=trail.error or trail.outcome if trail.outcome not in ("ok", "cancelled") else "",
        )
        found.append(self._request)

    def draw(self) -> None:
        trail, attempts = self._trail, self._attempts
        parts = list(_parts(trail, attempts))
        for part, of in parts:
            if not attempts or part.start < attempts[0][0].at or part.name == waterfall.SELDOM:
                self._part(part, of, self._request)
        if trail.let_in_at is None:  # refused, or it left
            self._add("admission queue", trail.started, self._end, self._request)
        before: Span | None = None
        ends = [after[0].at for _, after in pairwise(attempts)]
        for attempt, end in zip(attempts, [*ends, self._end], strict=True):
            mine = [
                (part, of)
                for part, of in parts
                if attempt[0].at <= part.start < end and part.name != waterfall.SELDOM
            ]
            before = self._attempt(attempt, end, mine, before)

    def _attempt(
        self, attempt: Sequence[Event], end: float, parts: Parts, before: Span | None
    ) -> Span:
        failed = waterfall.last(attempt, Failed)
        span = self._add(
            "attempt",
            attempt[0].at,
            end if failed is None else failed.at,
            self._request,
            links=() if before is None else (before,),
            error="" if failed is None else failed.why,
        )
        placed = waterfall.last(attempt, Placed)
        prefill = None if placed is None else self._prefill(attempt, placed, span)
        alone = placed is not None and placed.decision.alone
        decode = self._decodes(attempt, placed if alone else None, span)
        for part, of in parts:
            parent: Span | None = span
            if part.name in IN_PREFILL:
                parent = prefill
            elif part.name in IN_DECODE:
                parent = decode
            self._part(part, of, parent or span)
        return span

    def _prefill(self, attempt: Sequence[Event], placed: Placed, parent: Span) -> Span:
        decision = placed.decision
        prefilled, opened = waterfall.last(attempt, Prefilled), waterfall.last(attempt, Opened)
        score = decision.score
        attributes: list[tuple[str, Value]] = [
            ("kvasir.predicted.wait_s", score.wait_s),
            ("kvasir.predicted.prefill_s", score.work_s),
            ("kvasir.predicted.cached_tokens", decision.cached_tokens),
        ]
        if opened is not None:
            attributes.append(("kvasir.cached_tokens", opened.cached_tokens))
        return self._add(
            "prefill",
            placed.at,
            parent.end if prefilled is None else prefilled.at,
            parent,
            tuple(attributes),
            _place(decision.replica),
            error=parent.error if prefilled is None else "",
        )

    def _decodes(self, attempt: Sequence[Event], alone: Placed | None, parent: Span) -> Span | None:
        """Everybody who decoded it, or tried to. Returns the first who did: it has the parts of the
        first gap."""
        prefilled = waterfall.last(attempt, Prefilled)
        first: Span | None = None  # who decoded it first,
        now: Span | None = None  # who does so after the events so far,
        call: Span | None = None  # who is called and has not fetched it,
        coming: Span | None = None  # who has fetched it and waits for Moved
        failed: Span | None = None
        migration: Span | None = None
        if alone is not None and prefilled is not None:
            place = _place(alone.decision.replica)
            first = now = self._add("decode", prefilled.at, parent.end, parent, (), place)
        for event in attempt:
            match event:
                case Bound(at, decision, epoch, moving):
                    call = self._add("decode", at, parent.end, parent)
                    call.place = _place(decision.replica)
                    call.attributes = (("kvasir.epoch", epoch),)
                    after = migration if moving else failed
                    call.links = () if after is None else (after,)
                case Unbound(at, why) if call is not None:
                    call.name, call.end, call.error = "bind", at, why
                    call, failed = None, call
                case Fetched(_, _, moving) if call is not None:
                    call.attributes += _fetched(event)
                    if moving:
                        coming = call
                    else:
                        first = now = call
                    call = None
                case Offered(at) if now is not None:
                    migration = self._add("migration", at, parent.end, parent, links=(now,))
                case Moved(at) if migration is not None and now is not None:
                    migration.end = now.end = at
                    self._stream(now)
                    now, coming = coming, None
                case Stayed(at, why) if migration is not None:
                    migration.end = at
                    migration.attributes = (("kvasir.stayed", why),)
        if now is not None:
            self._stream(now)
        return first

    def _stream(self, decode: Span) -> None:
        """Tokens after the second one, as this worker said them."""
        second_at = self._trail.second_at
        if second_at is not None and second_at < decode.end:
            start = max(second_at, decode.start)
            self._add("streaming", start, decode.end, decode, (), decode.place)

    def _part(self, part: waterfall.Span, of: str, parent: Span) -> None:
        attributes = (("kvasir.part", of),)
        self._add(part.name, part.start, part.end, parent, attributes, parent.place)

    def _add(
        self,
        name: str,
        start: float,
        end: float,
        parent: Span,
        attributes: Attributes = (),
        place: Place | None = None,
        links: tuple[Span, ...] = (),
        error: str = "",
    ) -> Span:
        span_id = self._visit.new_span_id()
        span = Span(span_id, parent, name, start, end, attributes, place, links, error)
        self._found.append(span)
        return span


def _parts(
    trail: Trail, attempts: Sequence[waterfall.Attempt]
) -> Iterator[tuple[waterfall.Span, str]]:
    """Of both sums; what nobody claims stands there as "other"."""
    if trail.first_at is None or trail.let_in_at is None or not attempts:
        return
    ttft = waterfall.ttft_spans(trail, attempts)
    yield from _filled(ttft, trail.started, trail.first_at, "ttft")
    if trail.second_at is not None:
        gap = waterfall.gap_spans(trail, attempts)
        yield from _filled(gap, trail.first_at, trail.second_at, "first_gap")


def _filled(
    spans: Sequence[waterfall.Span], start: float, end: float, of: str
) -> Iterator[tuple[waterfall.Span, str]]:
    for span in sorted(spans, key=lambda span: span.start):
        if span.start - start > LEAST_S:
            yield waterfall.Span(waterfall.OTHER, start, span.start), of
        yield span, of
        start = span.end
    if end - start > LEAST_S:
        yield waterfall.Span(waterfall.OTHER, start, end), of


def _place(replica: Replica) -> Place:
    return Place(replica.id, replica.record.pool)


def _fetched(event: Fetched) -> Attributes:
    said = event.admitted
    return (
        ("kvasir.transport", said.transport),
        ("kvasir.fetched_bytes", said.fetched_bytes),
        ("kvasir.cached_tokens", said.cached_tokens),
        ("kvasir.admit_wait_s", said.admit_wait_s),
        ("kvasir.transfer_s", said.transfer_s),
        ("kvasir.exposed_s", said.exposed_s),
    )


def _attributes(
    operation: str, asked: Asked, attempts: Sequence[waterfall.Attempt]
) -> Iterator[tuple[str, Value]]:
    """By the GenAI conventions where they have a name for it."""
    trail, params = asked.trail, asked.params
    yield "gen_ai.operation.name", operation
    yield "gen_ai.provider.name", PROVIDER
    yield "gen_ai.request.model", asked.model
    yield "gen_ai.response.model", asked.model
    yield "gen_ai.response.id", trail.request_id
    yield "gen_ai.request.temperature", params.temperature
    if params.max_tokens is not None:
        yield "gen_ai.request.max_tokens", params.max_tokens
    yield "gen_ai.usage.input_tokens", trail.prompt_tokens
    yield "gen_ai.usage.output_tokens", trail.output_tokens
    opened = (waterfall.last(attempt, Opened) for attempt in attempts)
    first = next((event for event in opened if event is not None), None)
    if first is not None:
        yield "gen_ai.usage.cache_read.input_tokens", first.cached_tokens
    if trail.finish_reason is not None:
        yield "gen_ai.response.finish_reasons", (trail.finish_reason.value,)
    if trail.first_at is not None:
        yield "gen_ai.server.time_to_first_token", trail.first_at - trail.started
        if trail.second_at is not None:
            yield "kvasir.first_gap_s", trail.second_at - trail.first_at
    if trail.slo_class:
        yield "kvasir.class", trail.slo_class
    if trail.tenant:
        yield "kvasir.tenant", trail.tenant
    yield "kvasir.outcome", trail.outcome
