"""Asks the router's Admin service, once and with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import TracebackType

import grpc

from workers.core.errors import InvalidRequest, RequestNotFound, Unavailable
from workers.wire import admin_pb2 as admin
from workers.wire import admin_pb2_grpc, worker_pb2
from workers.wire import common_pb2 as common

DEADLINE_S = 5.0
SET_ROLE_DEADLINE_S = 15.0
FSCK_DEADLINE_S = 300.0  # it reads every table whole
# A proxy is for the world outside; the router is ours.
OPTIONS = [("grpc.enable_http_proxy", 0)]
RECORD_OPTIONS = [*OPTIONS, ("grpc.max_receive_message_length", -1)]
RECORD_SILENCE_S = 15.0  # a router that has nothing to say says so every 5 s


class AdminClient:
    """Each call raises Unavailable where the router does not answer."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(address, OPTIONS)
        self._stub = admin_pb2_grpc.AdminStub(self._channel)

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._channel.close()

    def status(self) -> admin.StatusResponse:
        try:
            return self._stub.Status(admin.StatusRequest(), timeout=DEADLINE_S)
        except grpc.RpcError as error:
            raise self._unavailable(error) from None

    def tickets(self) -> admin.ClusterTickets:
        try:
            return self._stub.Tickets(worker_pb2.TicketsRequest(), timeout=DEADLINE_S)
        except grpc.RpcError as error:
            raise self._unavailable(error) from None

    def fsck(self, repair: bool) -> admin.FsckResponse:
        try:
            return self._stub.Fsck(admin.FsckRequest(repair=repair), timeout=FSCK_DEADLINE_S)
        except grpc.RpcError as error:
            raise self._unavailable(error) from None

    def explain_request(self, name: str) -> admin.ExplainRequestResponse:
        """Raises RequestNotFound too."""
        try:
            asked = admin.ExplainRequestRequest(id=name)
            return self._stub.ExplainRequest(asked, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise RequestNotFound(name) from None
            raise self._unavailable(error) from None

    def recent_requests(self, limit: int) -> admin.RecentRequestsResponse:
        try:
            asked = admin.RecentRequestsRequest(limit=limit)
            return self._stub.RecentRequests(asked, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            raise self._unavailable(error) from None

    def set_slo(self, json: str) -> None:
        """`json`: the `slo` section of cluster.yaml, checked."""
        try:
            self._stub.SetSlo(admin.SetSloRequest(json=json), timeout=DEADLINE_S)
        except grpc.RpcError as error:
            raise self._unavailable(error) from None

    def set_role(self, replica: str, role: common.Role) -> common.Role:
        """Its role before. Raises InvalidRequest too, where the router refuses."""
        try:
            asked = admin.SetReplicaRoleRequest(replica=replica, role=role)
            return self._stub.SetRole(asked, timeout=SET_ROLE_DEADLINE_S).was
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                raise InvalidRequest(error.details()) from None
            raise self._unavailable(error) from None

    def _unavailable(self, error: grpc.RpcError) -> Unavailable:
        return _unavailable(self.address, error)


def _unavailable(address: str, error: grpc.RpcError) -> Unavailable:
    return Unavailable(
        f"the router at {address} did not answer ({error.code().name}: {error.details()}); "
        "is `kvasir serve` running?"
    )


async def follow_record(
    address: str, salt: bytes, steps: bool
) -> AsyncGenerator[admin.RecordedBatch]:
    """What a router records, until it goes away: then Unavailable is raised."""
    asked = admin.RecordRequest(salt=salt, steps=steps)
    async with grpc.aio.insecure_channel(address, RECORD_OPTIONS) as channel:
        try:
            stream = admin_pb2_grpc.AdminStub(channel).Record(asked)
            while True:
                async with asyncio.timeout(RECORD_SILENCE_S):
                    batch = await stream.read()
                if batch is grpc.aio.EOF:
                    raise Unavailable(f"the router at {address} has ended the recording")
                yield batch
        except grpc.aio.AioRpcError as error:
            raise _unavailable(address, error) from None
        except TimeoutError:
            raise Unavailable(f"the router at {address} is silent") from None
