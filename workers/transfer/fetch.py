"""What a fetch is on the sending side: where its blocks come from, and how others end it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from workers.core.errors import TicketError, TransferError
from workers.core.ticket import Ticket
from workers.wire import worker_pb2 as worker

T = TypeVar("T")


class Source(Protocol):
    """The blocks of one ticket, in order, as their KV becomes complete. `live`: its sequence
    decodes on until it is asked for more than it has; so it is asked when all before has arrived.
    """

    live: bool

    async def blocks(self, first: int) -> Sequence[int]:
        """The pages from block `first` on whose KV is complete: as many as there are, at least one;
        waits for it. Empty when there are no more. Raises TicketError when the sequence is over
        here. May be cancelled."""

    def complete(self, known_tokens: int) -> worker.Complete | None:
        """What there is in all, as soon as everything is computed."""


class Fetch:
    """One binding's stream on the sending side, and how others end it."""

    def __init__(
        self,
        ticket: Ticket,
        redeem: worker.Redeem,
        requests: AsyncIterator[worker.FetchRequest],
        patience_s: float,
    ) -> None:
        """`patience_s`: how long the receiver may be silent when everything was sent."""
        self.ticket = ticket
        self.redeem = redeem
        self.requests = requests
        self.patience_s = patience_s
        self.stopping = asyncio.Event()
        self.left = asyncio.Event()  # the receiver says nothing more
        self.quiet = asyncio.Event()  # no page is read for it any more
        self.done = asyncio.Event()  # for its owner to set
        self._readers = 0
        self._why = ""

    def stop(self) -> None:
        """The ticket is taken away, as its story says. Pages may go when `quiet`; chunks end from
        staging."""
        if not self.stopping.is_set():
            self._why = self.ticket.story[-1]
        self.stopping.set()
        if self._readers == 0:
            self.quiet.set()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Pages. Raises TicketError when stopped."""
        if self.stopping.is_set():
            raise self._stopped()
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            if self.stopping.is_set():
                self.stop()

    async def unless_stopped(self, work: Awaitable[T]) -> T:
        """TicketError when the ticket is taken away, TransferError when the receiver leaves."""
        task = asyncio.ensure_future(work)
        ends = [asyncio.ensure_future(end.wait()) for end in (self.stopping, self.left)]
        everything: list[asyncio.Future[Any]] = [task, *ends]
        try:
            await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if self.stopping.is_set():
                raise self._stopped()
            raise TransferError(f"ticket {self.ticket.id}: the receiver left")
        finally:
            for future in everything:
                future.cancel()
            await asyncio.wait(everything)
            if not task.cancelled():
                task.exception()  # who stops or leaves does not care for it

    def _stopped(self) -> TicketError:
        return TicketError(f"ticket {self.ticket.id}: {self._why}")
