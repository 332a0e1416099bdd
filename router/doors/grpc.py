"""The gRPC door: both services, health and reflection on one port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NoReturn

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from router.config import Address
from router.doors.guard import shown
from router.doors.http import port_taken
from router.doors.keys import ApiKeys
from workers.core.errors import KvasirError
from workers.wire import admin_pb2_grpc as admin_grpc
from workers.wire import inference_pb2_grpc as inference_grpc
from workers.wire.tls import ServerTls

ADMIN = "kvasir.v1.Admin"
SERVICES = ("kvasir.v1.Inference", ADMIN)
OPEN = frozenset({health.SERVICE_NAME})
OPTIONS = (
    ("grpc.so_reuseport", 0),  # a port that is taken must be an error
    ("grpc.max_send_message_length", -1),
    # A client that vanished without a word, and one that wants to know whether we did.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)

Metadata = Iterable[tuple[str, str | bytes]]


class GrpcServer:
    """Health is what set_ready() said last, and open to everybody; all else asks for a key where
    there are `keys`."""

    def __init__(
        self,
        address: Address,
        max_bytes: int,
        tls: ServerTls | None = None,
        keys: ApiKeys | None = None,
    ) -> None:
        """Binds the port; must be made in a running loop. Raises ConfigError when it is taken."""
        options = [*OPTIONS, ("grpc.max_receive_message_length", max_bytes)]
        guards = [] if keys is None else [KeyInterceptor(keys)]
        self._server = grpc.aio.server(options=options, interceptors=guards)
        self._health = health.aio.HealthServicer()
        try:
            if tls is None:
                self.port = self._server.add_insecure_port(str(address))
            else:
                self.port = self._server.add_secure_port(str(address), tls.grpc_credentials())
        except RuntimeError as error:
            raise port_taken("grpc", address, error) from None

    async def start(
        self,
        inference_service: inference_grpc.InferenceServicer,
        admin_service: admin_grpc.AdminServicer,
    ) -> None:
        inference_grpc.add_InferenceServicer_to_server(inference_service, self._server)
        admin_grpc.add_AdminServicer_to_server(admin_service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        await self._server.start()

    async def set_ready(self, ready: bool) -> None:
        status = health_pb2.HealthCheckResponse.ServingStatus
        value = status.SERVING if ready else status.NOT_SERVING
        for service in ("", *SERVICES):
            await self._health.set(service, value)

    async def stop(self, grace_s: float) -> None:
        """Takes nothing new; what still runs after `grace_s` is cancelled."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Ends calls without a key as UNAUTHENTICATED, and those to the admin service without an
    admin's as PERMISSION_DENIED."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        service = details.method.split("/")[1]
        if service not in OPEN:
            try:
                secret = secret_in(details.invocation_metadata)
                self._keys.find(secret, admin=service == ADMIN)
            except KvasirError as error:
                return _refusal(error)
        return await continuation(details)


def secret_in(metadata: Metadata | None) -> str | None:
    """The key that a caller shows."""
    for name, value in metadata or ():
        if name == "authorization" and isinstance(value, str):
            return shown(value)
    return None


def _refusal(error: KvasirError) -> grpc.RpcMethodHandler:
    async def refuse(request: Any, context: grpc.aio.ServicerContext) -> NoReturn:
        await context.abort(grpc.StatusCode[error.code.value], error.message)
        raise AssertionError("abort() raises")

    return grpc.unary_unary_rpc_method_handler(refuse)
