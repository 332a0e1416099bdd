"""Traces on their way to an OTLP receiver.

Of OpenTelemetry we use the messages and the gRPC stub, not the SDK, whose spans and exporter cost
more than a request may (docs/decisions.md; load_tests/bench_tracing.py measures ours).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import islice

import grpc
import grpc.aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_grpc
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from router.tracing.message import TraceMessage
from router.tracing.visit import Visit
from workers.core.clock import Clock, unix_time

log = logging.getLogger(__name__)

MOST_WAITING = 4096  # visits; those that come while so many wait are lost
BATCH = 128  # visits in a message
PAUSE_S = 0.5  # a message at most so often
TIMEOUT_S = 10.0  # of one try
TRIES = 5
FIRST_WAIT_S = 0.5  # between tries; twice as long each time
LAST_WORDS_S = 1.0
AGAIN = frozenset(  # what OTLP says may be tried again
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class OtlpExporter(Collector):
    """An Exporter. `async with exporter.running()`: what was offered before the end is sent, if the
    receiver takes it at once. `who`: the router, as attributes of a resource."""

    def __init__(self, endpoint: str, clock: Clock, cluster: str, who: str) -> None:
        """`endpoint`: http://host:port, or https:// for TLS with the host's trusted roots."""
        self._clock = clock
        self._cluster = cluster
        self._who = who
        self._waiting: deque[Visit] = deque()
        self._news = asyncio.Event()
        self._outcomes = dict.fromkeys(("sent", "refused", "dropped"), 0)
        scheme, _, address = endpoint.partition("://")
        if scheme == "https":
            channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials())
        else:
            channel = grpc.aio.insecure_channel(address)
        self._channel = channel
        self._stub = service_grpc.TraceServiceStub(channel)

    def offer(self, visit: Visit) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._outcomes["dropped"] += 1
            return
        self._waiting.append(visit)
        self._news.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self._run())
            try:
                yield
            finally:
                task.cancel()
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                while self._waiting:
                    await self._send(*await self._message())
        except TimeoutError:
            self._outcomes["dropped"] += len(self._waiting)
        await self._channel.close()

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            await asyncio.sleep(PAUSE_S)
            self._news.clear()
            while self._waiting:
                await self._send(*await self._message())

    async def _message(self) -> tuple[TraceMessage, int]:
        """Of the oldest that wait, and how many. Between two of them others have their turn."""
        message = TraceMessage(self._cluster, self._who)
        visits = list(islice(self._waiting, BATCH))
        for visit in visits:
            message.add(visit, unix_time() - self._clock.now())
            await asyncio.sleep(0)
        for _ in visits:
            self._waiting.popleft()
        return message, len(visits)

    async def _send(self, message: TraceMessage, count: int) -> None:
        outcome = "refused"
        try:
            for last in (*range(1, TRIES), None):
                try:
                    await self._stub.Export(message.request, timeout=TIMEOUT_S)
                    outcome = "sent"
                    return
                except grpc.aio.AioRpcError as error:
                    if last is None or error.code() not in AGAIN:
                        log.warning("%d traces are lost: %s", count, error.details())
                        return
                await asyncio.sleep(FIRST_WAIT_S * 2 ** (last - 1))
        finally:
            self._outcomes[outcome] += count

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "kvasir_traces",
            "traces that were kept: sent, refused by the receiver, or dropped as too many waited",
            labels=["outcome"],
        )
        for outcome, count in self._outcomes.items():
            family.add_metric([outcome], count)
        yield family
