"""Spans as OTLP has them. Messages are made where they belong: one that is put into another one
later is copied there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.common.v1 import common_pb2 as common
from opentelemetry.proto.trace.v1 import trace_pb2 as otlp

from router.tracing.tree import Place, spans
from router.tracing.visit import Attributes, Visit

SERVER, INTERNAL = otlp.Span.SPAN_KIND_SERVER, otlp.Span.SPAN_KIND_INTERNAL


class TraceMessage:
    """An export request that grows. `cluster`, `router`: what resources say of who made a span."""

    def __init__(self, cluster: str, router: str) -> None:
        self.request = service.ExportTraceServiceRequest()
        self._cluster = cluster
        self._router = router
        self._adders: dict[Place | None, Callable[..., otlp.Span]] = {}

    def add(self, visit: Visit, origin_s: float) -> None:
        """`origin_s`: when the router's clock stood at 0, in seconds since 1970."""
        trace_id = visit.context.trace_id
        for span in spans(visit):
            parent = span.parent
            message = self._adder(span.place)(
                trace_id=trace_id,
                span_id=span.id,
                parent_span_id=visit.parent if parent is None else parent.id,
                name=span.name,
                kind=SERVER if parent is None else INTERNAL,
                start_time_unix_nano=int((origin_s + span.start) * 1e9),
                end_time_unix_nano=int((origin_s + span.end) * 1e9),
            )
            _write(span.attributes, message.attributes.add)
            for link in span.links:
                message.links.add(trace_id=trace_id, span_id=link.id)
            if span.error:
                message.status.code = otlp.Status.STATUS_CODE_ERROR
                message.status.message = span.error

    def _adder(self, place: Place | None) -> Callable[..., otlp.Span]:
        adder = self._adders.get(place)
        if adder is None:
            group: Any = self.request.resource_spans.add()
            _write(self._resource(place), group.resource.attributes.add)
            scope = group.scope_spans.add()
            scope.scope.name = "kvasir"
            adder = self._adders[place] = scope.spans.add
        return adder

    def _resource(self, place: Place | None) -> Attributes:
        if place is None:
            return (
                ("service.namespace", self._cluster),
                ("service.name", "kvasir-router"),
                ("service.instance.id", self._router),
            )
        return (
            ("service.namespace", self._cluster),
            ("service.name", "kvasir-worker"),
            ("service.instance.id", place.replica),
            ("kvasir.pool", place.pool),
        )


def _write(attributes: Attributes, add: Callable[..., common.KeyValue]) -> None:
    """`add`: of the message's list."""
    for key, value in attributes:
        written = add(key=key).value
        if isinstance(value, str):
            written.string_value = value
        elif isinstance(value, int):
            written.int_value = value
        elif isinstance(value, float):
            written.double_value = value
        else:
            for item in value:
                written.array_value.values.add(string_value=item)
