"""The Worker service: what a worker's parts say, put on a socket, and errors as gRPC statuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from workers.core.errors import KvasirError, TransferError
from workers.core.trace import speak_of
from workers.decode_server import DecodeServer
from workers.health import Health
from workers.peer_client import MAX_MESSAGE_BYTES
from workers.wire import worker_pb2 as worker
from workers.wire import worker_pb2_grpc as worker_grpc
from workers.wire.tls import ServerTls, TlsFiles
from workers.worker import Worker, WorkerState

T = TypeVar("T")
# At once, and in each Decode stream; more are refused, so that nobody fills our memory with them.
MAX_CALLS = 4096
SERVER_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a taken port is an error, not a shared one
    # A peer that vanished without a word: its calls end, and what they hold is free.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # what an unanswered ping is judged by: 60 s without it
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
)


class WorkerServicer(worker_grpc.WorkerServicer):
    def __init__(self, parts: Worker) -> None:
        self._parts = parts

    async def Prefill(self, request: Any, context: Any) -> AsyncIterator[worker.PrefillEvent]:
        speak_of(request.sequence.request_id, request.sequence.traceparent)
        async for event in _guarded(self._parts.prefill.prefill(request), context):
            yield event

    async def Decode(self, requests: Any, context: Any) -> None:
        stream = DecodeServer(self._decode, context.write, MAX_CALLS)
        await stream.serve(aiter(requests), self._parts.leaving)

    def _decode(self, request: worker.DecodeRequest) -> AsyncIterator[worker.DecodeEvent]:
        role = self._parts.decode if request.HasField("ticket") else self._parts.aggregated
        return role.decode(request)

    async def FetchKV(self, requests: Any, context: Any) -> None:
        """Written by hand: a receiver that does not read must not hold pages, and a generator that
        waits in a blocked write sees neither a release nor the end of its lease."""
        responses = _guarded(self._parts.desk.fetch(aiter(requests)), context)
        async with aclosing(responses) as stream:
            async for response in stream:
                try:
                    async with asyncio.timeout(self._parts.desk.patience_s):
                        await context.write(response)
                except TimeoutError:
                    await stream.aclose()
                    await _abort(context, TransferError("the receiver does not read"))

    async def Connect(self, request: Any, context: Any) -> worker.ConnectResponse:
        try:
            return await self._parts.desk.connect(request)
        except KvasirError as error:
            await _abort(context, error)

    async def Renew(self, request: Any, context: Any) -> worker.RenewResponse:
        return self._parts.desk.renew(request)

    async def Release(self, request: Any, context: Any) -> worker.ReleaseResponse:
        return self._parts.desk.release(request)

    async def Cancel(self, request: Any, context: Any) -> worker.CancelResponse:
        self._parts.prefill.cancel(request.request_id)
        self._parts.decode.cancel(request.request_id)
        self._parts.aggregated.cancel(request.request_id)
        return worker.CancelResponse()

    async def Move(self, request: Any, context: Any) -> worker.MoveResponse:
        return worker.MoveResponse(moving=self._parts.live.move(request.request_id))

    async def Drain(self, request: Any, context: Any) -> worker.DrainResponse:
        return worker.DrainResponse(left=await self._parts.drain(request.budget_s))

    async def SetRole(self, request: Any, context: Any) -> worker.SetRoleResponse:
        try:
            self._parts.set_role(request.role)
        except KvasirError as error:
            await _abort(context, error)
        return worker.SetRoleResponse()

    async def SetLimits(self, request: Any, context: Any) -> worker.SetLimitsResponse:
        return self._parts.set_limits(request.max_seqs, request.step_tokens)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[worker.LoadReport]:
        async for report in self._parts.watch(request.interval_s or 0.5):
            yield report

    async def Snapshot(self, request: Any, context: Any) -> worker.SnapshotResponse:
        return self._parts.snapshot()

    async def Tickets(self, request: Any, context: Any) -> worker.TicketsResponse:
        return self._parts.tickets()


async def _guarded(stream: AsyncIterator[T], context: Any) -> AsyncGenerator[T]:
    """Ends `stream` at once when the call ends; a KvasirError becomes its status."""
    try:
        async for item in stream:
            yield item
    except KvasirError as error:
        await _abort(context, error)
    finally:
        await stream.aclose()  # type: ignore[attr-defined]


async def _abort(context: Any, error: KvasirError) -> NoReturn:
    await context.abort(grpc.StatusCode[error.code.name], error.message)
    raise AssertionError("abort raises")


async def start_server(
    parts: Worker, host: str, port: int, tls: TlsFiles | None = None
) -> tuple[grpc.aio.Server, int]:
    """Serve on host:port (0 = any free one); returns the server and its port. Raises OSError when
    the port is taken, ConfigError for certificates that do not fit."""
    server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
    worker_grpc.add_WorkerServicer_to_server(WorkerServicer(parts), server)
    ready = Health(lambda: parts.state is WorkerState.READY)
    health_pb2_grpc.add_HealthServicer_to_server(ready, server)
    try:
        if tls is None:
            bound = server.add_insecure_port(f"{host}:{port}")
        else:
            bound = server.add_secure_port(f"{host}:{port}", ServerTls(tls).grpc_credentials())
    except RuntimeError as error:
        raise OSError(f"port {port} on {host} is taken: {error}") from error
    await server.start()
    return server, bound
