"""A simulated worker as the router calls it: the twin of router/worker_client.WorkerClient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cluster.simulator.fleet.stream import SimStream
from cluster.simulator.fleet.worker import SimWorker
from router.worker_client import WorkerFailed
from workers.core.hashing import BlockId
from workers.core.request import Request
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.codec import role_from_wire


class SimWorkerClient:
    """`find()`: the life that runs at its address now, if one does."""

    def __init__(self, replica: str, find: Callable[[], SimWorker | None]) -> None:
        self._where = f"worker {replica}"
        self._find = find

    def prefill(self, request: Request) -> SimStream:
        return self._ask(lambda at: at.prefill(request))

    def decode(
        self, request: Request, ticket: common.Ticket | None = None, epoch: int = 0
    ) -> SimStream:
        if ticket is None:
            return self._ask(lambda at: at.alone(request))
        return self._ask(lambda at: at.decode(request, ticket, epoch))

    def watch(self, interval_s: float) -> SimStream:
        return self._ask(lambda at: at.watch(interval_s))

    async def renew(self, ticket_ids: Sequence[str]) -> set[str]:
        return self._there().desk.renew(ticket_ids)

    async def release(self, ticket_id: str, epoch: int) -> None:
        self._there().desk.release(ticket_id, epoch)

    async def cancel(self, request_id: str, attempt: int) -> None:
        self._there().cancel(request_id)

    async def move(self, request_id: str) -> bool:
        """Simulated workers keep what they decode."""
        return False

    async def set_role(self, role: common.Role) -> None:
        name = role_from_wire(role)
        assert name is not None
        self._there().set_role(name)

    async def set_limits(self, max_seqs: int, step_tokens: int) -> None:
        self._there().set_limits(max_seqs, step_tokens)

    async def tickets(self) -> worker.TicketsResponse:
        return worker.TicketsResponse()

    async def snapshot(self) -> tuple[str, int, tuple[BlockId, ...]]:
        at = self._there()
        return at.me.incarnation, 0, tuple(at.engine.scheduler.pool.cached_ids())

    async def close(self) -> None:
        return None

    def _there(self) -> SimWorker:
        at = self._find()
        if at is None:
            raise WorkerFailed(f"{self._where} is down")
        return at

    def _ask(self, call: Callable[[SimWorker], Any]) -> SimStream:
        at = self._find()
        if at is not None:
            return call(at)
        stream = SimStream(self._where)
        stream.close(WorkerFailed(f"{self._where} is down"))
        return stream
