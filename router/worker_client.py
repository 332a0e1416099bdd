"""Calls to one worker, with gRPC's errors turned into ours.

WorkerFailed and WorkerFull mean that another attempt, here or elsewhere, may do; everything else
keeps the meaning that the worker gave it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import grpc

from workers.core.errors import (
    Code,
    InvalidRequest,
    KvasirError,
    Overloaded,
    TicketError,
    Unavailable,
)
from workers.core.hashing import BlockId
from workers.core.request import Request
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire import worker_pb2_grpc as worker_grpc
from workers.wire.codec import request_to_wire
from workers.wire.decode_client import DecodeClient
from workers.wire.redis_keys import unpack_ids
from workers.wire.tls import ClientTls, open_channel

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)

CONTROL_TIMEOUT_S = 2.0  # of calls that only change a state
SNAPSHOT_TIMEOUT_S = 10.0

CHANNEL_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    # each replica has its own connection and meets a restarted worker within a second
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # silence is found by the Watch stream; this ends sockets whose peer vanished without a word
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
)


class WorkerFailed(Unavailable):
    """The worker is gone, broke off, or will not take it now."""


class WorkerFull(Overloaded):
    """The worker has no room for it now; another one may have."""


def from_status(code: str, message: str, where: str) -> KvasirError:
    """The error that the worker meant. Codes that say nothing about the request mean: try again."""
    message = message or code
    if code == Code.INVALID_ARGUMENT:
        return InvalidRequest(message)
    if code == Code.FAILED_PRECONDITION:
        return TicketError(message)
    if code == Code.RESOURCE_EXHAUSTED:
        return WorkerFull(f"{where}: {message}")
    return WorkerFailed(f"{where}: {code}: {message}")


def from_rpc_error(error: grpc.aio.AioRpcError, where: str) -> KvasirError:
    return from_status(error.code().name, error.details() or "", where)


class WorkerStream(Protocol[E_co]):
    """What a worker says to one call. abort() and cancel() end it from outside. `ended`: by the
    worker, nothing is left to cancel there."""

    ended: bool

    async def read(self) -> E_co | None:
        """The next message; None = the worker ended the call well. Raises KvasirError."""

    def abort(self, reason: str) -> None:
        """Make the reader see WorkerFailed at once."""

    def cancel(self) -> None: ...


class RpcStream(Generic[E]):
    """A WorkerStream that is a gRPC call of its own. `async for` reads it."""

    def __init__(self, call: Any, where: str) -> None:
        self._call = call
        self._where = where
        self._aborted = "the call was cancelled"
        self.ended = False

    def abort(self, reason: str) -> None:
        self._aborted = reason
        self._call.cancel()

    def cancel(self) -> None:
        self._call.cancel()

    async def read(self, silence_s: float | None = None) -> E | None:
        """WorkerFailed after `silence_s` without a message."""
        try:
            async with asyncio.timeout(silence_s):
                message = await self._call.read()
        except TimeoutError:
            raise WorkerFailed(f"{self._where}: silent for {silence_s:g} s") from None
        except grpc.aio.AioRpcError as error:
            self.ended = True
            raise from_rpc_error(error, self._where) from None
        except asyncio.CancelledError:
            if _task_is_cancelled():
                raise
            raise WorkerFailed(f"{self._where}: {self._aborted}") from None
        if message is grpc.aio.EOF:
            self.ended = True
            return None
        result: E = message
        return result

    def __aiter__(self) -> RpcStream[E]:
        return self

    async def __anext__(self) -> E:
        message = await self.read()
        if message is None:
            raise StopAsyncIteration
        return message


class WorkerClient:
    """One channel to one worker. Unary calls take seconds at most and raise KvasirError; all
    Decode calls share a stream."""

    def __init__(
        self,
        replica: str,
        address: str,
        channel: grpc.aio.Channel | None = None,
        *,
        tls: ClientTls | None = None,
    ) -> None:
        self._where = f"worker {replica} at {address}"
        self._address = address
        self._tls = tls
        self._shown = tls.credentials() if tls is not None else None
        self._channel = channel or open_channel(address, CHANNEL_OPTIONS, tls)
        self._old: list[grpc.aio.Channel] = []
        self._stub: Any = worker_grpc.WorkerStub(self._channel)
        self._decodes = DecodeClient(
            lambda requests: self._stub.Decode(requests), partial(from_status, where=self._where)
        )

    def prefill(self, request: Request) -> WorkerStream[worker.PrefillEvent]:
        message = worker.PrefillRequest(sequence=request_to_wire(request))
        return self._stream(self._stub.Prefill, message)

    def decode(
        self, request: Request, ticket: common.Ticket | None = None, epoch: int = 0
    ) -> WorkerStream[worker.DecodeEvent]:
        """Without a ticket the worker prefills it too."""
        message = worker.DecodeRequest(
            sequence=request_to_wire(request), ticket=ticket, epoch=epoch
        )
        return self._decodes.start(message)

    def watch(self, interval_s: float) -> RpcStream[worker.LoadReport]:
        """It is the first call after each break, so from here on certificates are those of now."""
        if self._tls is not None and self._tls.credentials() is not self._shown:
            self._shown = self._tls.credentials()
            self._old.append(self._channel)  # what still runs there ends by itself
            self._channel = open_channel(self._address, CHANNEL_OPTIONS, self._tls)
            self._stub = worker_grpc.WorkerStub(self._channel)
        return self._stream(self._stub.Watch, worker.WatchRequest(interval_s=interval_s))

    async def renew(self, ticket_ids: Sequence[str]) -> set[str]:
        """Renews leases; returns the ids that the worker no longer knows."""
        reply = await self._unary(self._stub.Renew, worker.RenewRequest(ticket_ids=ticket_ids))
        return set(reply.unknown)

    async def release(self, ticket_id: str, epoch: int) -> None:
        await self._unary(
            self._stub.Release, worker.ReleaseRequest(ticket_id=ticket_id, epoch=epoch)
        )

    async def cancel(self, request_id: str, attempt: int) -> None:
        await self._unary(
            self._stub.Cancel, worker.CancelRequest(request_id=request_id, attempt=attempt)
        )

    async def move(self, request_id: str) -> bool:
        """Asks it to offer a running sequence to others; False: it does not decode there."""
        reply = await self._unary(self._stub.Move, worker.MoveRequest(request_id=request_id))
        return bool(reply.moving)

    async def set_role(self, role: common.Role) -> None:
        await self._unary(self._stub.SetRole, worker.SetRoleRequest(role=role))

    async def set_limits(self, max_seqs: int, step_tokens: int) -> None:
        """Sizes of its batches from the next step on; 0 = as it was started, which is the most."""
        limits = worker.SetLimitsRequest(max_seqs=max_seqs, step_tokens=step_tokens)
        await self._unary(self._stub.SetLimits, limits)

    async def tickets(self) -> worker.TicketsResponse:
        """Its tickets and pairs."""
        reply: worker.TicketsResponse = await self._unary(
            self._stub.Tickets, worker.TicketsRequest()
        )
        return reply

    async def snapshot(self) -> tuple[str, int, tuple[BlockId, ...]]:
        """Incarnation, the event it stands after, and every block cached."""
        reply = await self._unary(
            self._stub.Snapshot, worker.SnapshotRequest(), timeout_s=SNAPSHOT_TIMEOUT_S
        )
        return reply.incarnation, reply.event_seq, unpack_ids(reply.block_ids)

    async def close(self) -> None:
        await self._decodes.close()
        for channel in (*self._old, self._channel):
            await channel.close()

    def _stream(self, method: Any, message: Any) -> RpcStream[Any]:
        try:
            return RpcStream(method(message), self._where)
        except grpc.aio.UsageError as error:
            raise WorkerFailed(f"{self._where}: {error}") from None

    async def _unary(self, method: Any, message: Any, timeout_s: float = CONTROL_TIMEOUT_S) -> Any:
        try:
            return await method(message, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._where) from None
        except asyncio.CancelledError:
            if _task_is_cancelled():
                raise
            raise WorkerFailed(f"{self._where}: the connection was closed") from None
        except grpc.aio.UsageError as error:
            raise WorkerFailed(f"{self._where}: {error}") from None


def _task_is_cancelled() -> bool:
    """grpc raises CancelledError for a call that was cancelled as for a task that was."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
