"""Asks the router's Admin service, once and with a deadline."""

from __future__ import annotations

from types import TracebackType

import grpc

from workers.core.errors import Unavailable
from workers.wire import admin_pb2 as admin
from workers.wire import admin_pb2_grpc, worker_pb2

DEADLINE_S = 5.0


class AdminClient:
    """Each call raises Unavailable where the router does not answer."""

    def __init__(self, address: str) -> None:
        self.address = address
        # A proxy is for the world outside; the router is ours.
        self._channel = grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)])
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

    def tickets(self) -> worker_pb2.TicketsResponse:
        try:
            return self._stub.Tickets(worker_pb2.TicketsRequest(), timeout=DEADLINE_S)
        except grpc.RpcError as error:
            raise self._unavailable(error) from None

    def _unavailable(self, error: grpc.RpcError) -> Unavailable:
        return Unavailable(
            f"the router at {self.address} did not answer ({error.code().name}: "
            f"{error.details()}); is `kvasir serve` running?"
        )
