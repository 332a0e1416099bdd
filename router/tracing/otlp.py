"""Traces on their way to an OTLP receiver, by OpenTelemetry's SDK: its batches, its exporter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import SpanKind
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from router.tracing.spans import Drawer
from router.tracing.visit import Visit
from workers.core.clock import Clock, unix_time

log = logging.getLogger(__name__)

MOST_WAITING = 32_768  # spans; a trace that comes while so many wait is lost, and lost whole
BATCH = 512  # spans in a message
PAUSE_S = 0.5  # until those that are fewer are sent
LAST_WORDS_S = 1.0


class OtlpExporter(Collector):
    """An Exporter. `async with exporter.running()`: what was offered before the end is sent, if the
    receiver takes it at once. `who`: the router, as attributes of a resource."""

    def __init__(
        self, endpoint: str, headers: Mapping[str, str], clock: Clock, cluster: str, who: str
    ) -> None:
        """`endpoint`: http://host:port, or https:// for TLS, with the host's trusted roots unless
        OTEL_EXPORTER_OTLP_CERTIFICATE names others. `headers` go with each message."""
        self._clock = clock
        self._drawer = Drawer(cluster, who)
        self._offered = 0  # spans
        self._dropped = 0  # traces
        self._sender = _Sender(endpoint, headers)
        self._processor = BatchSpanProcessor(
            self._sender,
            max_queue_size=2 * MOST_WAITING,  # at its own bound it would lose spans one by one
            schedule_delay_millis=PAUSE_S * 1e3,
            max_export_batch_size=BATCH,
        )

    @property
    def waiting(self) -> int:
        """Spans that are neither sent nor lost."""
        return self._offered - self._sender.spans

    def offer(self, visit: Visit) -> None:
        if self.waiting >= MOST_WAITING:
            self._dropped += 1
            return
        drawn = self._drawer.draw(visit, unix_time() - self._clock.now())
        self._offered += len(drawn)
        for span in drawn:
            self._processor.on_end(span)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            sending = asyncio.create_task(asyncio.to_thread(self._processor.shutdown))
            _, late = await asyncio.wait([sending], timeout=LAST_WORDS_S)
            if late:
                self._sender.shutdown()  # what still waits is refused
            await sending

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "kvasir_traces",
            "traces that were kept: sent, refused by the receiver, or dropped as too many waited",
            labels=["outcome"],
        )
        family.add_metric(["sent"], self._sender.sent)
        family.add_metric(["refused"], self._sender.refused)
        family.add_metric(["dropped"], self._dropped)
        yield family


class _Sender(OTLPSpanExporter):
    """Counts. Its thread is the only one that writes here."""

    def __init__(self, endpoint: str, headers: Mapping[str, str]) -> None:
        super().__init__(
            endpoint, insecure=endpoint.startswith("http://"), headers=dict(headers) or None
        )
        self.spans = 0  # that do not wait any more
        self.sent = 0  # traces
        self.refused = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        ended = sum(span.kind is SpanKind.SERVER for span in spans)  # a trace's last is its root
        result = SpanExportResult.FAILURE
        try:
            result = super().export(spans)
            return result
        finally:
            if result is SpanExportResult.SUCCESS:
                self.sent += ended
            else:
                self.refused += ended
            self.spans += len(spans)
