"""Asks one worker, once and with a deadline."""

from __future__ import annotations

import grpc
import grpc.aio

from workers.core.errors import Unavailable
from workers.wire import worker_pb2, worker_pb2_grpc
from workers.wire.tls import ClientTls, open_channel

LOAD_S = 2.0
MARGIN_S = 5.0  # beyond the budget of a drain, for the answer
OPTIONS = [("grpc.enable_http_proxy", 0)]


class WorkerCalls:
    """`tls` as between workers."""

    def __init__(self, tls: ClientTls | None = None) -> None:
        self._tls = tls

    async def drain(self, address: str, budget_s: float) -> int:
        """It takes nothing new, and hands on or finishes what it has. What it still had when it was
        empty or `budget_s` was over; it goes on draining. Raises Unavailable where it does not
        answer."""
        async with open_channel(address, OPTIONS, self._tls) as channel:
            request = worker_pb2.DrainRequest(budget_s=budget_s)
            try:
                answer = await worker_pb2_grpc.WorkerStub(channel).Drain(
                    request, timeout=budget_s + MARGIN_S
                )
            except grpc.aio.AioRpcError as error:
                raise _unavailable(address, error) from None
        return int(answer.left)

    async def busy(self, address: str) -> int:
        """Requests and tickets that it has now. Raises Unavailable where it does not answer."""
        async with open_channel(address, OPTIONS, self._tls) as channel:
            stream = worker_pb2_grpc.WorkerStub(channel).Watch(
                worker_pb2.WatchRequest(), timeout=LOAD_S
            )
            try:
                load = await stream.read()
            except grpc.aio.AioRpcError as error:
                raise _unavailable(address, error) from None
            if load is grpc.aio.EOF:
                return 0  # it leaves
            return int(load.running + load.waiting + load.tickets_open)


def _unavailable(address: str, error: grpc.aio.AioRpcError) -> Unavailable:
    return Unavailable(
        f"the worker at {address} did not answer ({error.code().name}: {error.details()})"
    )
