"""A real OTLP receiver: it keeps what it is sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_grpc
from opentelemetry.proto.common.v1 import common_pb2 as common
from opentelemetry.proto.trace.v1 import trace_pb2 as otlp


@dataclass(frozen=True)
class Seen:
    """A span as it came. Times in seconds; `resource`: who is said to have made it."""

    trace: str
    id: str
    parent: str
    name: str
    start: float
    end: float
    attributes: dict[str, Any]
    resource: dict[str, Any]
    links: tuple[str, ...]
    error: str | None
    state: str

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass
class Tree:
    """One trace, checked to be one: every span but the root hangs on another one of it."""

    spans: list[Seen]
    root: Seen = field(init=False)

    def __post_init__(self) -> None:
        ids = {span.id for span in self.spans}
        assert len(ids) == len(self.spans), "two spans have one id"
        tops = [span for span in self.spans if span.parent not in ids]
        assert len(tops) == 1, [span.name for span in tops]
        (self.root,) = tops
        for span in self.spans:
            assert set(span.links) <= ids, f"{span.name} is linked to who knows what"

    def named(self, name: str) -> list[Seen]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Seen:
        (span,) = self.named(name)
        return span

    def parent(self, span: Seen) -> Seen:
        (found,) = [other for other in self.spans if other.id == span.parent]
        return found

    def sum_of(self, part: str) -> float:
        return sum(s.seconds for s in self.spans if s.attributes.get("kvasir.part") == part)


class Receiver(service_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.refusals: list[grpc.StatusCode] = []  # what the next messages are answered with
        self._spans: dict[str, list[Seen]] = {}
        self._whole: set[str] = set()
        self.metadata: dict[str, str] = {}  # of the last message
        self._came = threading.Condition()

    def Export(self, request: Any, context: Any) -> service.ExportTraceServiceResponse:
        with self._came:
            self.metadata = dict(context.invocation_metadata())
            if self.refusals:
                context.abort(self.refusals.pop(0), "not now")
            for group in request.resource_spans:
                resource = _read(group.resource.attributes)
                for scope in group.scope_spans:
                    for span in scope.spans:
                        seen = _seen(span, resource)
                        self._spans.setdefault(seen.trace, []).append(seen)
                        if span.kind == otlp.Span.SPAN_KIND_SERVER:
                            self._whole.add(seen.trace)
            self._came.notify_all()
        return service.ExportTraceServiceResponse()

    def tree(self, trace: str, within_s: float = 60.0) -> Tree:
        """The root of a trace comes last, so what is there then is all of it."""
        with self._came:
            assert self._came.wait_for(lambda: trace in self._whole, within_s), (
                f"no trace {trace}; there are {sorted(self._spans)}"
            )
            return Tree(sorted(self._spans[trace], key=lambda span: span.start))

    @property
    def traces(self) -> set[str]:
        with self._came:
            return set(self._spans)


def _seen(span: otlp.Span, resource: dict[str, Any]) -> Seen:
    failed = span.status.code == otlp.Status.STATUS_CODE_ERROR
    return Seen(
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        name=span.name,
        start=span.start_time_unix_nano / 1e9,
        end=span.end_time_unix_nano / 1e9,
        attributes=_read(span.attributes),
        resource=resource,
        links=tuple(link.span_id.hex() for link in span.links),
        error=span.status.message if failed else None,
        state=span.trace_state,
    )


def _read(attributes: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in attributes}


def _value(value: common.AnyValue) -> Any:
    kind = value.WhichOneof("value")
    assert kind is not None
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)


@contextmanager
def receiver(
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[tuple[Receiver, str]]:
    """It, and its endpoint. `credentials`: of TLS."""
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = Receiver()
    service_grpc.add_TraceServiceServicer_to_server(servicer, server)
    if credentials is None:
        scheme, port = "http", server.add_insecure_port("127.0.0.1:0")
    else:
        scheme, port = "https", server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield servicer, f"{scheme}://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
