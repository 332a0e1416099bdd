"""Tickets of one simulated worker, and the copies of their KV to others.

A copy takes the sender's link for as long as its bytes need, one after another; a prompt's chunks
go as they are computed. Nothing is copied in truth, so who is stopped reads no page any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cluster.simulator.fleet.engine import SimEngine
from workers.core.errors import KvasirError, TicketError
from workers.core.request import Sequence, SequenceStatus
from workers.core.ticket import Ticket, TicketState, TicketTable
from workers.wire import common_pb2 as common

EXPIRY_CHECK_S = 0.5

TransferSeconds = Callable[[int], float]


class Link:
    """What leaves one worker, in turn."""

    def __init__(self) -> None:
        self.free_at = 0.0

    def send(self, now: float, latency_s: float, wire_s: float) -> float:
        """When a copy that begins now has arrived."""
        self.free_at = max(now + latency_s, self.free_at) + wire_s
        return self.free_at


@dataclass(eq=False)
class Fetch:
    """Of a ticket's KV, from token `first` on. `seconds(num_bytes)`: of a copy alone on the link.
    `arrived(tokens)` or `failed(error)` is called once, unless it is left."""

    ticket_id: str
    epoch: int
    first: int
    token_bytes: int
    seconds: TransferSeconds
    arrived: Callable[[list[int]], None]
    failed: Callable[[KvasirError], None]
    began: float = 0.0
    computed_at: float = 0.0  # when the sender had computed everything
    sent: int = 0  # tokens given to the link
    due: float = 0.0  # when the last of them arrives
    over: bool = False
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)

    @property
    def num_bytes(self) -> int:
        return self.sent * self.token_bytes

    def end(self) -> None:
        self.over = True
        if self.timer is not None:
            self.timer.cancel()


class SimDesk:
    """`freed` is called when pages may have come free."""

    def __init__(
        self,
        me: common.ReplicaRef,
        kv_abi: str,
        engine: SimEngine,
        ttl_s: float,
        freed: Callable[[], None],
    ) -> None:
        self.tickets = TicketTable(self._over)
        self.link = Link()
        self._me = me
        self._kv_abi = kv_abi
        self._engine = engine
        self._ttl_s = ttl_s
        self._freed = freed
        self._sequences: dict[str, Sequence] = {}  # by ticket id
        self._fetches: dict[str, Fetch] = {}  # by ticket id, while they read pages
        self._tickets_of: dict[Sequence, Ticket] = {}
        self._opened = 0
        self._loop = asyncio.get_running_loop()
        self._expiry: asyncio.TimerHandle | None = None

    def open(self, seq: Sequence, num_tokens: int) -> tuple[Ticket, common.Ticket]:
        """For so many tokens of its KV, and what others are told of it."""
        self._opened += 1
        ticket = Ticket(
            f"{self._me.id}/{self._me.incarnation}/{self._opened}",
            seq.id,
            num_tokens,
            self._ttl_s,
            self._loop.time(),
        )
        self._sequences[ticket.id] = seq
        self._tickets_of[seq] = ticket
        self.tickets.add(ticket)
        if self._expiry is None:
            self._expiry = self._loop.call_later(EXPIRY_CHECK_S, self._expire)
        told = common.Ticket(
            id=ticket.id,
            prefill=self._me,
            kv_abi=self._kv_abi,
            num_tokens=num_tokens,
            num_blocks=self._engine.scheduler.pool.blocks_for(num_tokens),
            ttl_ms=int(self._ttl_s * 1000),
            shard=seq.shard,
        )
        return ticket, told

    def end(self, ticket: Ticket, why: str) -> None:
        """Its owner's word, whatever its epoch; idempotent."""
        self.release(ticket.id, None, why)

    def release(self, ticket_id: str, epoch: int | None, why: str = "release") -> None:
        ticket = self.tickets.find(ticket_id)
        if ticket is not None:
            self._engine.interrupt()
            ticket.release(epoch, self._loop.time(), why)
            self._after_end(ticket, why)

    def cancel(self, request_id: str) -> None:
        for ticket in self.tickets.live():
            if ticket.request_id == request_id:
                self.end(ticket, "cancelled")

    def renew(self, ticket_ids: Iterable[str]) -> set[str]:
        """Those that are not known any more."""
        unknown = set()
        for ticket_id in ticket_ids:
            ticket = self.tickets.find(ticket_id)
            if ticket is None:
                unknown.add(ticket_id)
            else:
                ticket.renew(self._loop.time())
        return unknown

    # -- copies ----------------------------------------------------------------------------------

    def fetch(self, fetch: Fetch) -> None:
        """Begins it. Raises TicketError for an old epoch or a ticket that is over."""
        ticket = self.tickets.get(fetch.ticket_id)
        ticket.check_epoch(fetch.epoch)
        now = self._loop.time()
        self._engine.interrupt()
        other = self._fetches.get(ticket.id)
        if other is not None:
            ticket.stop(TicketState.OPEN, now, f"epoch {fetch.epoch} takes over")
            self._let_go(other, TicketError(f"ticket {ticket.id}: a newer epoch took it over"))
        ticket.redeem(fetch.epoch, now)
        self._fetches[ticket.id] = fetch
        seq = self._sequences[ticket.id]
        self._engine.scheduler.pin(seq)
        fetch.began = now
        self._send(fetch, seq)

    def leave(self, fetch: Fetch) -> None:
        """Its receiver does not want it any more: somebody else may."""
        ticket = self.tickets.find(fetch.ticket_id)
        if ticket is not None and self._fetches.get(fetch.ticket_id) is fetch:
            self._engine.interrupt()
            ticket.stop(TicketState.OPEN, self._loop.time(), "the fetch broke off")
            self._let_go(fetch, None)

    def computed(self, seq: Sequence) -> None:
        """More of its KV is there."""
        ticket = self._tickets_of.get(seq)
        fetch = self._fetches.get(ticket.id) if ticket is not None else None
        if fetch is not None:
            self._send(fetch, seq)

    def _send(self, fetch: Fetch, seq: Sequence) -> None:
        """What is computed and not on its way. Whole blocks, until all is there."""
        now = self._loop.time()
        size = self._engine.scheduler.pool.block_size
        complete = seq.status is SequenceStatus.HELD
        there = seq.num_computed if complete else seq.num_computed // size * size
        new = there - fetch.first - fetch.sent
        latency_s = fetch.seconds(1)
        if new > 0:
            wire_s = max(0.0, fetch.seconds(new * fetch.token_bytes) - latency_s)
            fetch.due = self.link.send(now, 0.0 if fetch.sent else latency_s, wire_s)
            fetch.sent += new
        if complete:
            fetch.computed_at = now
            end = max(fetch.due, fetch.began + latency_s, now)
            fetch.timer = self._loop.call_at(end, self._received, fetch, list(seq.tokens))

    def _received(self, fetch: Fetch, tokens: list[int]) -> None:
        ticket = self.tickets.get(fetch.ticket_id)
        self._engine.interrupt()
        ticket.received(fetch.epoch, self._loop.time())
        self._let_go(fetch, None)
        fetch.arrived(tokens)

    def _let_go(self, fetch: Fetch, error: KvasirError | None) -> None:
        """`fetch` reads no page any more."""
        ticket = self.tickets.get(fetch.ticket_id)
        del self._fetches[ticket.id]
        fetch.end()
        ticket.stopped(self._loop.time())
        self._engine.scheduler.unpin(self._sequences[ticket.id])
        self.tickets.settle(ticket)
        self._freed()
        if error is not None:
            fetch.failed(error)

    # -- ends ------------------------------------------------------------------------------------

    def _expire(self) -> None:
        self._expiry = None
        for ticket in self.tickets.live():
            if ticket.expire(self._loop.time()):
                self._after_end(ticket, "its lease is over")
        if self.tickets.live():
            self._expiry = self._loop.call_later(EXPIRY_CHECK_S, self._expire)

    def _after_end(self, ticket: Ticket, why: str) -> None:
        fetch = self._fetches.get(ticket.id)
        if fetch is not None and ticket.state is TicketState.STOPPING:
            self._let_go(fetch, TicketError(f"ticket {ticket.id} is over: {why}"))
        else:
            self.tickets.settle(ticket)

    def _over(self, ticket: Ticket) -> None:
        seq = self._sequences.pop(ticket.id)
        del self._tickets_of[seq]
        self._engine.interrupt()
        self._engine.scheduler.abort(seq)
        self._freed()

    def stop(self, error: KvasirError) -> None:
        """Its worker is dead: who fetches from it hears so."""
        if self._expiry is not None:
            self._expiry.cancel()
        for fetch in list(self._fetches.values()):
            fetch.end()
            fetch.failed(error)
        self._fetches.clear()

    def check_integrity(self) -> None:
        self.tickets.check_integrity(self._sequences)
        reading = {ticket.id for ticket in self.tickets.live() if ticket.read}
        assert reading == set(self._fetches), "who reads pages, and whose ticket says so"
