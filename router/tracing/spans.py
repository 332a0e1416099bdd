"""A visit as OpenTelemetry's SDK has it: spans that are over, with ids and times of ours."""

from __future__ import annotations

from functools import lru_cache

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from router.tracing.tree import Place, Span, spans
from router.tracing.visit import Visit

SCOPE = InstrumentationScope("kvasir")
SAMPLED = TraceFlags(TraceFlags.SAMPLED)  # who is not sampled is not drawn
WELL = Status()
MOST_PLACES = 1024  # workers come and go


class Drawer:
    """`cluster`, `router`: what resources say of who made a span."""

    def __init__(self, cluster: str, router: str) -> None:
        self._cluster = cluster
        self._router = router
        self._resource_of = lru_cache(MOST_PLACES)(self._resource)

    def draw(self, visit: Visit, origin_s: float) -> list[ReadableSpan]:
        """The root last. `origin_s`: when the router's clock stood at 0, in seconds since 1970."""
        trace_id = int.from_bytes(visit.context.trace_id)
        state = TraceState.from_header([visit.context.state]) if visit.context.state else None
        contexts: dict[Span | None, SpanContext] = {}
        if visit.parent:
            parent_id = int.from_bytes(visit.parent)
            contexts[None] = SpanContext(trace_id, parent_id, True, SAMPLED, state)
        drawn = []
        for span in spans(visit):
            span_id = int.from_bytes(span.id)
            context = contexts[span] = SpanContext(trace_id, span_id, False, SAMPLED, state)
            drawn.append(
                ReadableSpan(
                    name=span.name,
                    context=context,
                    parent=contexts.get(span.parent),
                    resource=self._resource_of(span.place),
                    attributes=dict(span.attributes),
                    links=[Link(contexts[linked]) for linked in span.links],
                    kind=SpanKind.SERVER if span.parent is None else SpanKind.INTERNAL,
                    status=Status(StatusCode.ERROR, span.error) if span.error else WELL,
                    start_time=int((origin_s + span.start) * 1e9),
                    end_time=int((origin_s + span.end) * 1e9),
                    instrumentation_scope=SCOPE,
                )
            )
        drawn.reverse()
        return drawn

    def _resource(self, place: Place | None) -> Resource:
        """With what the SDK and OTEL_RESOURCE_ATTRIBUTES say."""
        attributes = {"service.namespace": self._cluster}
        if place is None:
            attributes |= {"service.name": "kvasir-router", "service.instance.id": self._router}
        else:
            attributes |= {"service.name": "kvasir-worker", "service.instance.id": place.replica}
            attributes |= {"kvasir.pool": place.pool}
        return _Whose(Resource.create(attributes).attributes)


class _Whose(Resource):
    """The exporter asks for its hash for each span; Resource makes it of JSON every time."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other
