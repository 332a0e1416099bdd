"""Asks the router's Admin service, once and with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import TracebackType

import grpc

from cluster.access import HTTPS, NOTHING, Access, Options
from workers.core.errors import InvalidRequest, PlanNotFound, RequestNotFound, Unavailable
from workers.wire import admin_pb2 as admin
from workers.wire import admin_pb2_grpc, worker_pb2
from workers.wire import common_pb2 as common

DEADLINE_S = 5.0
SET_ROLE_DEADLINE_S = 15.0
FSCK_DEADLINE_S = 300.0  # it reads every table whole
# A proxy is for the world outside; the router is ours.
OPTIONS: Options = [("grpc.enable_http_proxy", 0)]
RECORD_OPTIONS: Options = [*OPTIONS, ("grpc.max_receive_message_length", -1)]
RECORD_SILENCE_S = 15.0  # a router that has nothing to say says so every 5 s


class AdminClient:
    """Each call raises Unavailable where the router does not answer."""

    def __init__(self, address: str, access: Access = NOTHING) -> None:
        self.address = address
        credentials = access.credentials(address)
        address, options = address.removeprefix(HTTPS), access.options(OPTIONS)
        self._channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )
        self._metadata = access.metadata
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
            return self._stub.Status(
                admin.StatusRequest(), metadata=self._metadata, timeout=DEADLINE_S
            )
        except grpc.RpcError as error:
            raise self._unavailable(error) from None

    def tickets(self) -> admin.ClusterTickets:
        try:
            return self._stub.Tickets(
                worker_pb2.TicketsRequest(), metadata=self._metadata, timeout=DEADLINE_S
            )
        except grpc.RpcError as error:
            raise self._unavailable(error) from None

    def fsck(self, repair: bool) -> admin.FsckResponse:
        try:
            return self._stub.Fsck(
                admin.FsckRequest(repair=repair), metadata=self._metadata, timeout=FSCK_DEADLINE_S
            )
        except grpc.RpcError as error:
            raise self._unavailable(error) from None

    def explain_request(self, name: str) -> admin.ExplainRequestResponse:
        """Raises RequestNotFound too."""
        try:
            asked = admin.ExplainRequestRequest(id=name)
            return self._stub.ExplainRequest(asked, metadata=self._metadata, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise RequestNotFound(name) from None
            raise self._unavailable(error) from None

    def recent_requests(self, limit: int) -> admin.RecentRequestsResponse:
        try:
            asked = admin.RecentRequestsRequest(limit=limit)
            return self._stub.RecentRequests(asked, metadata=self._metadata, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            raise self._unavailable(error) from None

    def set_slo(self, json: str) -> None:
        """`json`: the `slo` section of cluster.yaml, checked."""
        try:
            self._stub.SetSlo(
                admin.SetSloRequest(json=json), metadata=self._metadata, timeout=DEADLINE_S
            )
        except grpc.RpcError as error:
            raise self._unavailable(error) from None

    def set_role(self, replica: str, role: common.Role) -> common.Role:
        """Its role before. Raises InvalidRequest too, where the router refuses."""
        try:
            asked = admin.SetReplicaRoleRequest(replica=replica, role=role)
            return self._stub.SetRole(
                asked, metadata=self._metadata, timeout=SET_ROLE_DEADLINE_S
            ).was
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                raise InvalidRequest(error.details()) from None
            raise self._unavailable(error) from None

    def explain_scale(self) -> admin.ExplainScaleResponse:
        """Raises PlanNotFound too."""
        try:
            return self._stub.ExplainScale(
                admin.ExplainScaleRequest(), metadata=self._metadata, timeout=DEADLINE_S
            )
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise PlanNotFound from None
            raise self._unavailable(error) from None

    def _unavailable(self, error: grpc.RpcError) -> Unavailable:
        return _unavailable(self.address, error)


def _unavailable(address: str, error: grpc.RpcError) -> Unavailable:
    locked = error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    hint = "--api-key or KVASIR_API_KEY says it" if locked else "is `kvasir serve` running?"
    return Unavailable(
        f"the router at {address} did not answer ({error.code().name}: {error.details()}); {hint}"
    )


def _aio_channel(address: str, access: Access) -> grpc.aio.Channel:
    credentials = access.credentials(address)
    address, options = address.removeprefix(HTTPS), access.options(RECORD_OPTIONS)
    if credentials is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, credentials, options)


async def follow_record(
    address: str, asked: admin.RecordRequest, access: Access = NOTHING
) -> AsyncGenerator[admin.RecordedBatch]:
    """What a router records, until it goes away: then Unavailable is raised."""
    async with _aio_channel(address, access) as channel:
        try:
            stream = admin_pb2_grpc.AdminStub(channel).Record(asked, metadata=access.metadata)
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
