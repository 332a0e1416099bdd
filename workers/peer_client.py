"""Other workers over gRPC: the Peer that fetches speak to."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import grpc.aio

from workers.core.errors import TicketError, TransferError
from workers.wire import worker_pb2 as worker
from workers.wire import worker_pb2_grpc as worker_grpc

MAX_MESSAGE_BYTES = 64 << 20
CONNECT_S = 5.0
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
)


class GrpcPeer:
    def __init__(self, stub: worker_grpc.WorkerStub) -> None:
        self._stub = stub

    async def connect(self, request: worker.ConnectRequest) -> worker.ConnectResponse:
        try:
            response: worker.ConnectResponse = await self._stub.Connect(request, timeout=CONNECT_S)
            return response
        except grpc.aio.AioRpcError as error:
            raise TransferError(f"Connect: {error.details()}") from error

    async def fetch(
        self, requests: AsyncIterator[worker.FetchRequest]
    ) -> AsyncIterator[worker.FetchResponse]:
        call = self._stub.FetchKV(requests)
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            gone = error.code() is grpc.StatusCode.FAILED_PRECONDITION
            raise (TicketError if gone else TransferError)(f"FetchKV: {error.details()}") from error
        finally:
            call.cancel()


class GrpcPeers:
    """One channel an address, kept."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}

    def at(self, address: str) -> GrpcPeer:
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address, CHANNEL_OPTIONS)
        return GrpcPeer(worker_grpc.WorkerStub(self._channels[address]))

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
