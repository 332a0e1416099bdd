"""Other workers over gRPC: the Peer that fetches speak to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import grpc.aio

from workers.core.clock import Clock
from workers.core.errors import TicketError, TransferError
from workers.wire import worker_pb2 as worker
from workers.wire import worker_pb2_grpc as worker_grpc
from workers.wire.tls import ClientTls, open_channel

MAX_MESSAGE_BYTES = 64 << 20
CONNECT_S = 5.0
MAX_CHANNELS = 64  # tickets name their peer, and a ticket is somebody's word
IDLE_S = 60.0  # then a channel goes
TEND_S = 2.0
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
)


class GrpcPeer:
    def __init__(self, peers: GrpcPeers, address: str) -> None:
        self._peers = peers
        self._address = address

    async def connect(self, request: worker.ConnectRequest) -> worker.ConnectResponse:
        with self._peers.stub(self._address) as stub:
            try:
                response: worker.ConnectResponse = await stub.Connect(request, timeout=CONNECT_S)
                return response
            except grpc.aio.AioRpcError as error:
                raise TransferError(f"Connect: {error.details()}") from error

    async def fetch(
        self, requests: AsyncIterator[worker.FetchRequest]
    ) -> AsyncIterator[worker.FetchResponse]:
        """Its reader says how long it waits for each response."""
        with self._peers.stub(self._address) as stub:
            call = stub.FetchKV(requests)
            try:
                async for response in call:
                    yield response
            except grpc.aio.AioRpcError as error:
                gone = error.code() is grpc.StatusCode.FAILED_PRECONDITION
                kind = TicketError if gone else TransferError
                raise kind(f"FetchKV: {error.details()}") from error
            finally:
                call.cancel()


@dataclass(eq=False)
class _Kept:
    channel: grpc.aio.Channel
    shown: grpc.ChannelCredentials | None
    calls: int = 0
    used_at: float = 0.0


class GrpcPeers:
    """One channel an address, kept while it is used and a while longer."""

    def __init__(
        self,
        clock: Clock,
        open_one: Callable[[str], grpc.aio.Channel] | None = None,
        *,
        tls: ClientTls | None = None,
    ) -> None:
        self._clock = clock
        self._open = open_one or (lambda address: open_channel(address, CHANNEL_OPTIONS, tls))
        self._tls = tls
        self._channels: dict[str, _Kept] = {}
        self._dropped: list[grpc.aio.Channel] = []

    def at(self, address: str) -> GrpcPeer:
        return GrpcPeer(self, address)

    @contextmanager
    def stub(self, address: str) -> Iterator[worker_grpc.WorkerStub]:
        """For one call. Raises TransferError when too many peers are spoken to at once."""
        kept, shown = self._channels.get(address), self._tls and self._tls.credentials()
        if kept is not None and not kept.calls and kept.shown is not shown:
            self._drop([address])
            kept = None
        if kept is None:
            self._make_room()
            kept = _Kept(self._open(address), shown)
            self._channels[address] = kept
        kept.calls += 1
        try:
            yield worker_grpc.WorkerStub(kept.channel)
        finally:
            kept.calls -= 1
            kept.used_at = self._clock.now()

    async def tend(self) -> None:
        """Close what nobody uses. Runs as long as the worker does."""
        while True:
            await asyncio.sleep(TEND_S)
            before = self._clock.now() - IDLE_S
            self._drop(address for address, kept in self._idle() if kept.used_at < before)
            await self._close_dropped()

    def gone(self, address: str) -> None:
        """No worker is there any more."""
        self._drop(a for a, _ in self._idle() if a == address)

    async def close(self) -> None:
        self._drop(list(self._channels))
        await self._close_dropped()

    def _idle(self) -> list[tuple[str, _Kept]]:
        return [(address, kept) for address, kept in self._channels.items() if not kept.calls]

    def _make_room(self) -> None:
        if len(self._channels) < MAX_CHANNELS:
            return
        idle = self._idle()
        if not idle:
            raise TransferError(f"{MAX_CHANNELS} peers are spoken to at once, no room for another")
        self._drop([min(idle, key=lambda item: item[1].used_at)[0]])

    def _drop(self, addresses: Iterable[str]) -> None:
        self._dropped.extend(self._channels.pop(address).channel for address in addresses)

    async def _close_dropped(self) -> None:
        while self._dropped:
            await self._dropped.pop().close()
