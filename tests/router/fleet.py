"""Workers that are real gRPC servers without a model: scripted to refuse, die or fall silent.

The token at position p is always `token_at(p)`, so any gap, repetition or swap in what a client
gets shows. Tickets are kept as the design says: epochs only grow, a redeemed ticket is gone.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import grpc

from router.config import Limits
from router.dispatch import Dispatcher
from router.flight import Emission
from router.index.expecting import ExpectingIndex
from router.latency import RooflineModel
from router.metrics import RouterMetrics
from router.placement.placement import Placement
from router.pool import Pool
from workers.core.clock import SystemClock
from workers.core.hardware import ModelShape, hardware
from workers.core.request import Request, SamplingParams
from workers.core.roles import RoleName
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire import worker_pb2_grpc as worker_grpc
from workers.wire.codec import role_to_wire
from workers.wire.redis_keys import ReplicaRecord, pack_ids

SHAPE = ModelShape(2, 64, 4, 2, 16, 128, 1000)
KV_ABI = "fake"
BLOCK = 4


def token_at(position: int) -> int:
    return 100 + position * 7 % 800


class FakeWorker(worker_grpc.WorkerServicer):
    """`script` has one word for each Prefill or Decode call to come; when it is empty, "ok"."""

    def __init__(self, fleet: Fleet, name: str, role: RoleName) -> None:
        self.name = name
        self.role = role
        self.script: deque[str] = deque()
        self.calls: list[worker.PrefillRequest | worker.DecodeRequest] = []
        self.tickets: dict[str, int] = {}  # id -> highest epoch seen
        self.active = 0
        self.renewed: list[str] = []
        self.released: list[tuple[str, int]] = []
        self.cancelled: list[str] = []
        self.blocks: list[bytes] = []
        self.blocks_total = 256
        self.event_seq = 0
        self.state = "ready"
        self.silent = False
        self.incarnation = ""
        self.port = 0
        self.finish_at: int | None = None  # output tokens after which it stops
        self._fleet = fleet
        self._server: grpc.aio.Server | None = None

    @property
    def running(self) -> bool:
        return self._server is not None

    @property
    def record(self) -> ReplicaRecord:
        return ReplicaRecord(
            id=self.name,
            incarnation=self.incarnation,
            address=f"127.0.0.1:{self.port}",
            pool=self.role,
            role=self.role,
            model="fake",
            kv_abi=KV_ABI,
            block_size=BLOCK,
            context_length=512,
            kv_tokens=1024,
        )

    async def start(self) -> None:
        """A new life on the old port."""
        self.incarnation = secrets.token_hex(4)
        self.silent = False
        self.tickets.clear()
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        worker_grpc.add_WorkerServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def kill(self) -> None:
        server, self._server = self._server, None
        self.tickets.clear()
        if server is not None:
            await server.stop(None)

    async def Watch(
        self, request: worker.WatchRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[worker.LoadReport]:
        incarnation = self.incarnation
        while self.incarnation == incarnation:
            if not self.silent:
                yield self.report()
            await asyncio.sleep(0.05)

    def report(self) -> worker.LoadReport:
        return worker.LoadReport(
            replica=common.ReplicaRef(id=self.name, incarnation=self.incarnation),
            role=role_to_wire(self.role),
            state=self.state,
            kv_abi=KV_ABI,
            blocks_total=self.blocks_total,
        )

    async def Prefill(
        self, request: worker.PrefillRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[worker.PrefillEvent]:
        self.calls.append(request)
        word = self.script.popleft() if self.script else "ok"
        spec = request.sequence
        ticket = self._ticket(spec)
        delivered = False
        with self._running():
            try:
                await self._act(word, "before", context)
                self.tickets[ticket.id] = 0
                yield worker.PrefillEvent(
                    attempt=spec.attempt, opened=worker.Opened(ticket=ticket, cached_tokens=2)
                )
                await self._act(word, "opened", context)
                finish = self._finish(spec, len(spec.token_ids) + 1)
                if finish:
                    del self.tickets[ticket.id]
                position = len(spec.token_ids)
                token = common.Token(id=token_at(position), position=position)
                first = worker.FirstToken(token=token, finish_reason=finish)
                yield worker.PrefillEvent(attempt=spec.attempt, first_token=first)
                yield worker.PrefillEvent(attempt=spec.attempt, done=worker.PrefillDone())
                delivered = True
                if word == "die first":
                    await self.kill()
                if word == "lose ticket":
                    self.tickets.clear()
            finally:
                if not delivered:
                    self.tickets.pop(ticket.id, None)

    async def Decode(
        self, request: worker.DecodeRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[worker.DecodeEvent]:
        self.calls.append(request)
        word = self.script.popleft() if self.script else "ok"
        spec = request.sequence
        with self._running():
            await self._act(word, "before", context)
            for event in await self._admit(request, context):
                yield event
            sent = 0
            position = len(spec.token_ids)
            while True:
                await self._act(word, f"after {sent}", context)
                for event in self._tokens(spec, position, word if sent == 2 else "ok"):
                    yield event
                if self._finish(spec, position + 1):
                    return
                position, sent = position + 1, sent + 1

    async def _admit(
        self, request: worker.DecodeRequest, context: grpc.aio.ServicerContext
    ) -> list[worker.DecodeEvent]:
        attempt = request.sequence.attempt
        if request.HasField("ticket"):
            await self._redeem(request, context)
            admitted = worker.Admitted(fetched_bytes=64, transport="gloo")
            return [worker.DecodeEvent(attempt=attempt, admitted=admitted)]
        admitted = worker.Admitted(cached_tokens=2, admit_wait_s=0.5, transport="local")
        progress = worker.Progress(computed_tokens=len(request.sequence.token_ids) - 1)
        return [
            worker.DecodeEvent(attempt=attempt, admitted=admitted),
            worker.DecodeEvent(attempt=attempt, progress=progress),
            worker.DecodeEvent(attempt=attempt, prefilled=worker.Prefilled(prefill_s=0.25)),
        ]

    def _tokens(
        self, spec: worker.SequenceSpec, position: int, word: str
    ) -> list[worker.DecodeEvent]:
        def event(at: int, attempt: int, id_: int) -> worker.DecodeEvent:
            token = common.Token(id=id_, position=at)
            finish = self._finish(spec, at + 1)
            return worker.DecodeEvent(
                attempt=attempt, tokens=worker.Tokens(tokens=[token], finish_reason=finish)
            )

        due = event(position, spec.attempt, token_at(position))
        if word == "repeat":
            return [event(position - 1, spec.attempt, 1), due]
        if word == "old attempt":
            return [event(position, spec.attempt - 1, 1), due]
        if word == "skip":
            return [event(position + 1, spec.attempt, token_at(position + 1))]
        return [due]

    async def _redeem(
        self, request: worker.DecodeRequest, context: grpc.aio.ServicerContext
    ) -> None:
        ticket = request.ticket
        holder = self._fleet.workers[ticket.prefill.id]
        if holder._server is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the prefill worker is gone")
        seen = holder.tickets.get(ticket.id)
        if seen is None or holder.incarnation != ticket.prefill.incarnation:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no such ticket")
        if seen is not None and request.epoch <= seen:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "an old epoch")
        del holder.tickets[ticket.id]

    async def _act(self, word: str, moment: str, context: grpc.aio.ServicerContext) -> None:
        """Words: "<what> <moment>", or a status code that refuses the call at once."""
        if moment == "before" and word in grpc.StatusCode.__members__:
            await context.abort(grpc.StatusCode[word], f"scripted {word}")
        if word == f"die {moment}":
            self._fleet.spawn(self.kill())
            await asyncio.sleep(60)
        if word == f"silent {moment}":
            self.silent = True
            await asyncio.sleep(60)
        if word == f"wait {moment}":
            await asyncio.sleep(60)

    def _finish(self, spec: worker.SequenceSpec, length: int) -> common.FinishReason:
        output = length - spec.prompt_len
        if self.finish_at is not None and output >= self.finish_at:
            return common.FINISH_REASON_STOP
        if output >= spec.sampling.max_tokens:
            return common.FINISH_REASON_LENGTH
        return common.FINISH_REASON_UNSPECIFIED

    def _ticket(self, spec: worker.SequenceSpec) -> common.Ticket:
        me = common.ReplicaRef(id=self.name, incarnation=self.incarnation)
        return common.Ticket(
            id=secrets.token_hex(8),
            prefill=me,
            kv_abi=KV_ABI,
            num_tokens=len(spec.token_ids),
            ttl_ms=10_000,
        )

    @contextmanager
    def _running(self):
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    async def Renew(
        self, request: worker.RenewRequest, context: grpc.aio.ServicerContext
    ) -> worker.RenewResponse:
        self.renewed.extend(request.ticket_ids)
        return worker.RenewResponse(unknown=set(request.ticket_ids) - set(self.tickets))

    async def Release(
        self, request: worker.ReleaseRequest, context: grpc.aio.ServicerContext
    ) -> worker.ReleaseResponse:
        self.released.append((request.ticket_id, request.epoch))
        gone = self.tickets.pop(request.ticket_id, None)
        return worker.ReleaseResponse(released=gone is not None)

    async def Cancel(
        self, request: worker.CancelRequest, context: grpc.aio.ServicerContext
    ) -> worker.CancelResponse:
        self.cancelled.append(request.request_id)
        return worker.CancelResponse()

    async def Snapshot(
        self, request: worker.SnapshotRequest, context: grpc.aio.ServicerContext
    ) -> worker.SnapshotResponse:
        return worker.SnapshotResponse(
            incarnation=self.incarnation,
            event_seq=self.event_seq,
            block_ids=pack_ids(self.blocks),
        )

    async def Tickets(
        self, request: worker.TicketsRequest, context: grpc.aio.ServicerContext
    ) -> worker.TicketsResponse:
        return worker.TicketsResponse(tickets=[worker.TicketInfo(id=id_) for id_ in self.tickets])


class Fleet:
    """All fake workers of a test."""

    def __init__(self) -> None:
        self.workers: dict[str, FakeWorker] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __getitem__(self, name: str) -> FakeWorker:
        return self.workers[name]

    async def add(self, name: str, role: RoleName) -> FakeWorker:
        fake = self.workers[name] = FakeWorker(self, name, role)
        await fake.start()
        return fake

    def spawn(self, work) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def records(self) -> list[ReplicaRecord]:
        return [fake.record for fake in self.workers.values()]

    async def quiet(self) -> None:
        """Until no worker runs anything or holds a ticket."""

        def done() -> bool:
            fakes = self.workers.values()
            return not any(fake.active or fake.tickets for fake in fakes)

        await until(done)

    async def close(self) -> None:
        for fake in self.workers.values():
            await fake.kill()
        await asyncio.gather(*self._tasks)


@dataclass
class House:
    """A router's inside, without doors."""

    fleet: Fleet
    pool: Pool
    index: ExpectingIndex
    metrics: RouterMetrics
    dispatcher: Dispatcher
    clock: SystemClock

    async def tokens(self, request: Request) -> list[Emission]:
        return [emission async for emission in self.dispatcher.run(request)]


LIMITS = Limits(
    retry_attempts=4, retry_s=10.0, worker_wait_s=5.0, worker_silence_s=1.0, shutdown_s=1.0
)


@asynccontextmanager
async def house(*names: str, limits: Limits = LIMITS) -> AsyncIterator[House]:
    """`names` like "prefill-1" or "aggregated-1"; all up when the block begins."""
    fleet = Fleet()
    try:
        for name in names:
            await fleet.add(name, name.partition("-")[0])
        metrics, clock = RouterMetrics(), SystemClock()
        index = ExpectingIndex(clock)
        placement = Placement(RooflineModel(SHAPE, hardware("cpu")), random.Random(7))
        async with (
            Pool(limits.worker_silence_s, [metrics]) as pool,
            Dispatcher(pool, placement, index, limits, clock, metrics) as dispatcher,
        ):
            pool.sync(fleet.records())
            await until(lambda: all(replica.up for replica in pool))
            yield House(fleet, pool, index, metrics, dispatcher, clock)
            pool.check_integrity()
            for replica in pool:
                assert not replica.assignments, replica.tell()
            assert dispatcher.tickets_held == 0
    finally:
        await fleet.close()


async def until(condition, seconds: float = 10.0) -> None:
    """Fails loudly instead of hanging; says nothing about speed."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def request(num_prompt: int = 10, max_tokens: int = 6, **params) -> Request:
    return Request(
        id=secrets.token_hex(4),
        token_ids=tuple(range(1, num_prompt + 1)),
        prompt_len=num_prompt,
        params=SamplingParams(max_tokens=max_tokens, seed=1, **params),
    )
