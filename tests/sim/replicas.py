"""Both halves of the exchange without engines, in virtual time: pages of known bytes, real ports
and pairs, and a wire between them that behaves like a stream of gRPC."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.core.clock import VirtualClock
from workers.core.errors import KvasirError, TransferError
from workers.core.sim_runner import SimPages
from workers.core.span import Span, share
from workers.core.ticket import Ticket, TicketState
from workers.core.waits import Offload, inline
from workers.transfer.fetch import Fetch
from workers.transfer.memory import MemoryFabric
from workers.transfer.pair import Pair
from workers.transfer.port import LocalPort, Ports
from workers.transfer.receiver import Fetched, Receiver
from workers.transfer.receiver_pairs import ReceiverPairs
from workers.transfer.sender import send_blocks
from workers.transfer.sender_pairs import SenderPairs
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker

BLOCK = 4  # tokens
HEAD_BYTES = 2  # of a token


class HeadPages:
    """The pages of all ranks as one, like the leader's: whole blocks, each with all heads."""

    def __init__(self, ranks: Sequence[SimPages], spans: Sequence[Span]) -> None:
        self.num_blocks = ranks[0].num_blocks
        self.block_bytes = BLOCK * HEAD_BYTES * spans[0].total
        self.new_staging = ranks[0].new_staging
        self.to_bytes = ranks[0].to_bytes
        self.from_bytes = ranks[0].from_bytes
        self._whole = SimPages(
            self.num_blocks, BLOCK, heads=spans[0].total, slot_bytes=HEAD_BYTES * spans[0].total
        )
        self._ranks = list(zip(ranks, spans, strict=True))

    def gather(self, blocks: Sequence[int], staging: Any, heads: slice | None = None) -> None:
        for pages, span in self._ranks:
            part = pages.new_staging(len(blocks) * pages.block_bytes)
            pages.gather(blocks, part)
            self._whole.scatter(part, blocks, span.part)
        self._whole.gather(blocks, staging, heads)

    def scatter(self, staging: Any, blocks: Sequence[int], heads: slice | None = None) -> None:
        self._whole.scatter(staging, blocks, heads)
        for pages, span in self._ranks:
            part = pages.new_staging(len(blocks) * pages.block_bytes)
            self._whole.gather(blocks, part, span.part)
            pages.scatter(part, blocks)


@dataclass
class Blocks:
    """A Source: these pages, of which the first `ready` are complete. Growing says so."""

    pages: list[int]
    ready: int
    tokens: list[int] = field(default_factory=lambda: [7])
    error: KvasirError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    live: bool = False

    def grow(self, ready: int) -> None:
        self.ready = ready
        self.changed.set()

    def end(self, error: KvasirError) -> None:
        self.error = error
        self.changed.set()

    async def blocks(self, first: int) -> Sequence[int]:
        while first >= self.ready and self.ready < len(self.pages) and self.error is None:
            self.changed.clear()
            await self.changed.wait()
        if self.error is not None:
            raise self.error
        return self.pages[first : self.ready]

    def complete(self, known_tokens: int) -> worker.Complete | None:
        if self.ready < len(self.pages):
            return None
        return worker.Complete(num_tokens=len(self.pages) * BLOCK, token_ids=self.tokens)


@dataclass
class Lands:
    """A Landing on these pages. `asked` are the ranges that were wanted."""

    at: Sequence[int]
    asked: list[tuple[int, int]] = field(default_factory=list)

    def pages(self, first: int, count: int) -> Sequence[int]:
        self.asked.append((first, count))
        if first + count > len(self.at):
            raise TransferError("no pages")
        return self.at[first : first + count]


class Replica:
    """One end of handoffs, with `ranks` ranks. `slot_blocks` fit a slot."""

    def __init__(
        self,
        net: Net,
        name: str,
        *,
        ranks: int = 1,
        kv_heads: int = 4,
        blocks: int = 64,
        incarnation: str = "1",
        offload: Offload = inline,
        slots: int = 2,
        slot_blocks: int = 2,
        max_pairs: int = 4,
        inline_bytes: int = 0,
        checksums: bool = True,
        fabrics: Sequence[MemoryFabric] | None = None,
    ) -> None:
        fabrics = [net.fabric] if fabrics is None else fabrics
        self.ref = common.ReplicaRef(
            id=name, incarnation=incarnation, address=name, tensor_ranks=ranks
        )
        spans = [share(kv_heads, rank, ranks) for rank in range(ranks)]
        self.ranks = [
            SimPages(blocks, BLOCK, heads=span.size, slot_bytes=HEAD_BYTES * span.size)
            for span in spans
        ]
        self.pages = HeadPages(self.ranks, spans)
        ports = tuple(
            LocalPort(pages, span, fabrics, offload)
            for pages, span in zip(self.ranks, spans, strict=True)
        )
        every = Ports((ports,), kv_heads, self.pages.block_bytes)
        sizes = {
            "slot_bytes": slot_blocks * self.pages.block_bytes,
            "slots": slots,
            "max_pairs": max_pairs,
            "connect_timeout_s": 5.0,
            "chunk_timeout_s": 5.0,
        }
        self.sender_pairs = SenderPairs(every, **sizes)  # type: ignore[arg-type]
        self.receiver_pairs = ReceiverPairs(
            every,
            fabrics,
            self.ref,
            "sim",
            VirtualClock(),
            net.peer,
            **sizes,  # type: ignore[arg-type]
        )
        self.receiver = Receiver(
            net.peer,
            self.receiver_pairs,
            self.pages,
            self.ref,
            offload,
            block_size=BLOCK,
            inline_bytes=inline_bytes,
        )
        self.inline_bytes = inline_bytes
        self.checksums = checksums
        self.offload = offload
        self.tickets: dict[str, tuple[Ticket, Blocks]] = {}
        self.fetches: list[Fetch] = []
        self.pairs: list[Pair | None] = []  # that were found for them
        net.replicas[name] = self

    # -- as a sender -----------------------------------------------------------------------------

    def fill(self, seed: int = 1) -> None:
        """Every page with bytes of its own."""
        draw = random.Random(seed)
        data = self.pages.from_bytes(draw.randbytes(self.pages.num_blocks * self.pages.block_bytes))
        self.pages.scatter(data, range(self.pages.num_blocks))

    def ticket(self, name: str, source: Blocks) -> common.Ticket:
        num_tokens = len(source.pages) * BLOCK
        self.tickets[name] = (Ticket(name, name, num_tokens, 1000.0, 0.0), source)
        return common.Ticket(
            id=name,
            prefill=self.ref,
            kv_abi="sim",
            num_tokens=num_tokens,
            num_blocks=len(source.pages),
        )

    def stop(self, name: str) -> None:
        """What a release does to a fetch."""
        ticket, _ = self.tickets[name]
        ticket.stop(TicketState.RELEASED, 0.0, "release")
        for fetch in self.fetches:
            if fetch.ticket is ticket:
                fetch.stop()

    async def connect(self, request: worker.ConnectRequest) -> worker.ConnectResponse:
        return await self.sender_pairs.accept(request)

    async def fetch(
        self, requests: AsyncIterator[worker.FetchRequest]
    ) -> AsyncIterator[worker.FetchResponse]:
        redeem = (await anext(requests)).redeem
        ticket, source = self.tickets[redeem.ticket_id]
        ticket.redeem(redeem.epoch, 0.0)
        fetch = Fetch(ticket, redeem, requests, 5.0)
        self.fetches.append(fetch)
        pair = await self.sender_pairs.find(redeem.receiver, redeem.generation)
        self.pairs.append(pair)
        sending = send_blocks(
            fetch,
            source,
            pair,
            self.pages,
            self.offload,
            checksums=self.checksums,
            inline_bytes=self.inline_bytes,
        )
        try:
            async for response in sending:
                yield response
            ticket.received(redeem.epoch, 0.0)
            yield worker.FetchResponse(redeemed=worker.Redeemed())
        finally:
            await sending.aclose()
            ticket.stop(TicketState.OPEN, 0.0, "the fetch broke off")
            ticket.stopped(0.0)
            fetch.done.set()

    # -- as a receiver ---------------------------------------------------------------------------

    async def take(
        self, ticket: common.Ticket, at: Sequence[int], *, epoch: int = 1, first: int = 0
    ) -> Fetched:
        return await self.receiver.fetch(
            ticket, epoch, first, ticket.num_tokens, Lands(at), shard=0
        )

    def bytes_at(self, blocks: Sequence[int]) -> bytes:
        staging = self.pages.new_staging(len(blocks) * self.pages.block_bytes)
        self.pages.gather(blocks, staging)
        return bytes(staging)


class Net:
    """Who is reached at which address. `tamper` may change what a sender says."""

    def __init__(
        self,
        fabric: MemoryFabric | None = None,
        tamper: Callable[[worker.FetchResponse], None] = lambda _: None,
    ) -> None:
        self.fabric = MemoryFabric() if fabric is None else fabric
        self.replicas: dict[str, Replica] = {}
        self.tamper = tamper
        self.said: list[str] = []  # kinds of messages, both ways
        self.wires: list[_Wire] = []

    def peer(self, address: str) -> _Wire:
        wire = _Wire(self, address)
        self.wires.append(wire)
        return wire

    def freeze(self) -> None:
        """As SIGSTOP does to all senders: nothing more is said, and nothing breaks."""
        for wire in self.wires:
            wire.frozen = True

    def cut_streams(self) -> None:
        """As the death of either process does."""
        for wire in self.wires:
            wire.cut()


class _Wire:
    """Like a socket it pulls the stream whether or not anybody reads; leaving cancels the other
    side; silence is broken by heartbeats."""

    def __init__(self, net: Net, address: str) -> None:
        self.frozen = False
        self._net = net
        self._made = net.replicas.get(address)
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._pumping: asyncio.Task[None] | None = None

    async def connect(self, request: worker.ConnectRequest) -> worker.ConnectResponse:
        if self._made is None:
            raise TransferError("nobody there")
        return await self._made.connect(request)

    async def fetch(
        self, requests: AsyncIterator[worker.FetchRequest]
    ) -> AsyncIterator[worker.FetchResponse]:
        if self._made is None:
            raise TransferError("nobody there")
        self._pumping = asyncio.create_task(self._pump(self._made, requests))
        beating = asyncio.create_task(self._beat())
        try:
            while (item := await self._inbox.get()) is not None:
                if isinstance(item, KvasirError):
                    raise item
                yield item
        finally:
            for task in (self._pumping, beating):
                task.cancel()
            await asyncio.wait({self._pumping, beating})

    def cut(self) -> None:
        if self._pumping is not None and not self._pumping.done():
            self._pumping.cancel()
            self._inbox.put_nowait(TransferError("connection reset"))

    async def _pump(self, made: Replica, requests: AsyncIterator[worker.FetchRequest]) -> None:
        stream = made.fetch(self._note(requests))
        try:
            async for response in stream:
                self._net.said.append(str(response.WhichOneof("message")))
                self._net.tamper(response)
                self._pass_on(response)
            self._inbox.put_nowait(None)
        except KvasirError as error:
            self._inbox.put_nowait(error)
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    async def _note(
        self, requests: AsyncIterator[worker.FetchRequest]
    ) -> AsyncIterator[worker.FetchRequest]:
        async for request in requests:
            self._net.said.append(str(request.WhichOneof("message")))
            yield request

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._pass_on(worker.FetchResponse(heartbeat=worker.Heartbeat()))

    def _pass_on(self, response: worker.FetchResponse) -> None:
        if not self.frozen:
            self._inbox.put_nowait(response)


class Copies:
    """An Offload on which every copy takes `seconds`, several at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.running = 0

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        async def run() -> Any:
            self.running += 1
            await asyncio.sleep(self.seconds)
            self.running -= 1
            return function(*args)

        return asyncio.shield(asyncio.ensure_future(run()))


def two(net: Net, **kwargs: Any) -> tuple[Replica, Replica]:
    """A filled sender and an empty receiver."""
    sender, receiver = Replica(net, "p", **kwargs), Replica(net, "d", **kwargs)
    sender.fill()
    return sender, receiver
