"""A worker that is a real gRPC server without a model: scripted to refuse, die or fall silent.

The token at position p is always `token_at(p)`, so any gap, repetition or swap in what a client
gets shows. Tickets are kept as the design says: epochs only grow, a redeemed ticket is gone; one
may be redeemed before its first token is there, and a draining worker offers what decodes on it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from workers.core.errors import KvasirError
from workers.core.roles import RoleName
from workers.decode_server import DecodeServer
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire import worker_pb2_grpc as worker_grpc
from workers.wire.codec import role_from_wire, role_to_wire
from workers.wire.redis_keys import ReplicaRecord, pack_ids

if TYPE_CHECKING:
    from tests.router.fleet import Fleet

KV_ABI = "fake"
BLOCK = 4


def token_at(position: int) -> int:
    return 100 + position * 7 % 800


class Refused(KvasirError):
    """Ends a call with any status."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code: Any = code


@dataclass
class Live:
    """A sequence that decodes. Who redeems its ticket sets `taken`."""

    position: int  # of its next token
    ticket: str = ""
    asked: bool = False  # to move
    taken: asyncio.Event = field(default_factory=asyncio.Event)


class FakeWorker(worker_grpc.WorkerServicer):
    """`script` has one word for each Prefill or Decode call to come; when it is empty, "ok"."""

    def __init__(self, fleet: Fleet, name: str, role: RoleName) -> None:
        self.name = name
        self.role = role
        self.script: deque[str] = deque()
        self.calls: list[worker.PrefillRequest | worker.DecodeRequest] = []
        self.tickets: dict[str, int] = {}  # id -> highest epoch seen
        self.computed: dict[str, asyncio.Event] = {}  # id -> its first token is there
        self.live: dict[str, Live] = {}  # by request id: what decodes here
        self.pace_s = 0.0  # between two tokens
        self.fetch_s = 0.0
        self.hold_at: int | None = None  # no sequence gets beyond this position
        self.gate = asyncio.Event()  # what words "gate ..." wait for
        self.active = 0
        self.decode_streams = 0
        self.renewed: list[str] = []
        self.released: list[tuple[str, int]] = []
        self.cancelled: list[str] = []
        self.blocks: list[bytes] = []
        self.blocks_total = 256
        self.quarantined: list[str] = []
        self.steps: list[worker.StepReport] = []  # told with every report
        self.transfers: list[worker.TransferReport] = []
        self.waiting = 0
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
        self._forget()
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        worker_grpc.add_WorkerServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def kill(self) -> None:
        server, self._server = self._server, None
        self._forget()
        if server is not None:
            await server.stop(None)

    def _forget(self) -> None:
        self.tickets.clear()
        self.computed.clear()
        self.live.clear()

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
            kv_bytes_per_token=1000,
            step_tokens=BLOCK,
            quarantined=self.quarantined,
            steps=self.steps,
            transfers=self.transfers,
            waiting=self.waiting,
        )

    async def Prefill(
        self, request: worker.PrefillRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[worker.PrefillEvent]:
        try:
            async with aclosing(self._prefill(request)) as events:
                async for event in events:
                    yield event
        except Refused as error:
            await context.abort(grpc.StatusCode[error.code], error.message)

    async def _prefill(self, request: worker.PrefillRequest) -> AsyncGenerator[worker.PrefillEvent]:
        self.calls.append(request)
        word = self.script.popleft() if self.script else "ok"
        spec = request.sequence
        ticket = self._ticket(spec)
        delivered = False
        with self._running():
            try:
                await self._act(word, "before")
                self.tickets[ticket.id] = 0
                computed = self.computed[ticket.id] = asyncio.Event()
                yield worker.PrefillEvent(
                    attempt=spec.attempt, opened=worker.Opened(ticket=ticket, cached_tokens=2)
                )
                await self._act(word, "opened")
                finish = self._finish(spec, len(spec.token_ids) + 1)
                if finish:
                    del self.tickets[ticket.id]
                computed.set()
                await self._act(word, "computed")
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
        self, requests: AsyncIterator[worker.DecodeCall], context: grpc.aio.ServicerContext
    ) -> None:
        self.decode_streams += 1
        try:
            server = DecodeServer(self._decode, context.write, most_calls=1000)
            await server.serve(aiter(requests), asyncio.Event())
        finally:
            self.decode_streams -= 1

    async def _decode(self, request: worker.DecodeRequest) -> AsyncIterator[worker.DecodeEvent]:
        self.calls.append(request)
        word = self.script.popleft() if self.script else "ok"
        spec = request.sequence
        with self._running():
            await self._act(word, "before")
            position = len(spec.token_ids)
            if request.HasField("ticket"):
                position = await self._redeem(request)
            await self._act(word, "redeemed")
            live = self.live[spec.request_id] = Live(position)
            try:
                for event in self._admitted(request):
                    yield event
                async for event in self._tokens_of(spec, live, word):
                    yield event
            finally:
                self.tickets.pop(live.ticket, None)
                if self.live.get(spec.request_id) is live:
                    del self.live[spec.request_id]

    async def _tokens_of(
        self, spec: worker.SequenceSpec, live: Live, word: str
    ) -> AsyncIterator[worker.DecodeEvent]:
        sent = 0
        while True:
            await self._act(word, f"after {sent}")
            if not live.ticket and (live.asked or self.state == "draining"):
                yield self._offer(spec, live)
                await self._act(word, "offered")
            if live.taken.is_set():
                await self._act(word, "moved")
                yield worker.DecodeEvent(attempt=spec.attempt, moved=worker.Moved())
                return
            if self.hold_at is not None and live.position >= self.hold_at:
                await asyncio.sleep(0.005)
                continue
            position, live.position = live.position, live.position + 1
            for event in self._tokens(spec, position, word if sent == 2 else "ok"):
                yield event
            if self._finish(spec, position + 1):
                return
            sent += 1
            await asyncio.sleep(self.pace_s)

    def _offer(self, spec: worker.SequenceSpec, live: Live) -> worker.DecodeEvent:
        ticket = self._ticket(spec)
        live.ticket = ticket.id
        self.tickets[ticket.id] = 0
        return worker.DecodeEvent(attempt=spec.attempt, moving=worker.Moving(ticket=ticket))

    def _admitted(self, request: worker.DecodeRequest) -> list[worker.DecodeEvent]:
        attempt = request.sequence.attempt
        if request.HasField("ticket"):
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

    async def _redeem(self, request: worker.DecodeRequest) -> int:
        """Waits for the first token, or stops who decodes it; returns the next position."""
        spec, ticket = request.sequence, request.ticket
        holder = self._fleet.workers[ticket.prefill.id]
        if not holder.running:
            raise Refused("UNAVAILABLE", "the sender is gone")
        seen = holder.tickets.get(ticket.id)
        if seen is None or holder.incarnation != ticket.prefill.incarnation:
            raise Refused("FAILED_PRECONDITION", "no such ticket")
        if seen is not None and request.epoch <= seen:
            raise Refused("FAILED_PRECONDITION", "an old epoch")
        holder.tickets[ticket.id] = request.epoch
        if (computed := holder.computed.get(ticket.id)) is not None:
            await computed.wait()
        await asyncio.sleep(self.fetch_s)
        if holder.tickets.get(ticket.id) != request.epoch:
            raise Refused("FAILED_PRECONDITION", "it ended meanwhile")
        del holder.tickets[ticket.id]
        if computed is not None:
            return ticket.num_tokens + 1
        live = holder.live[spec.request_id]
        live.taken.set()
        return live.position

    async def _act(self, word: str, moment: str) -> None:
        """Words: "<what> <moment>", or "<what> gate <moment>" once the gate is open; a bare status
        code refuses the call at once."""
        if word.endswith(f" gate {moment}"):
            await self.gate.wait()
            word = word.replace(" gate ", " ")
        what, _, when = word.partition(" ")
        if what in grpc.StatusCode.__members__ and when == moment:
            raise Refused(what, f"scripted {word}")
        if word == f"gate {moment}":
            await self.gate.wait()
        if moment == "before" and word in grpc.StatusCode.__members__:
            raise Refused(word, f"scripted {word}")
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

    async def Move(
        self, request: worker.MoveRequest, context: grpc.aio.ServicerContext
    ) -> worker.MoveResponse:
        live = self.live.get(request.request_id)
        if live is not None:
            live.asked = True
        return worker.MoveResponse(moving=live is not None)

    async def SetRole(
        self, request: worker.SetRoleRequest, context: grpc.aio.ServicerContext
    ) -> worker.SetRoleResponse:
        role = role_from_wire(request.role)
        if role is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such role")
        self.role = role
        return worker.SetRoleResponse()

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
