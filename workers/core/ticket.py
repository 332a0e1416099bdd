"""The handoff's state machine: the right to fetch one sequence's KV, owned by the worker that
computes it. No I/O; `now` comes from the owner's clock.

    from      to                        when
    OPEN      FETCHING                  somebody redeems with an epoch higher than any seen
    OPEN      RELEASED | EXPIRED        release or cancel | lease over
    FETCHING  REDEEMED                  the receiver has everything, checked
    FETCHING  STOPPING                  higher epoch, release, expiry, or the fetch broke off: the
                                        copy that is running ends first
    STOPPING  OPEN|RELEASED|EXPIRED     no page is being read any more
    REDEEMED  RELEASED                  receiver or router says so

A prefilled sequence stands still for its ticket: its pages are pinned in OPEN, FETCHING and
STOPPING, and when the ticket is over it is gone. A moving one decodes on at its owner until
somebody has redeemed it: its pages are pinned in FETCHING and STOPPING, and unless it was redeemed
it outlives its ticket. In no other state is a page pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from workers.core.errors import TicketError


class TicketState(StrEnum):
    OPEN = "open"
    FETCHING = "fetching"
    STOPPING = "stopping"
    REDEEMED = "redeemed"
    RELEASED = "released"
    EXPIRED = "expired"


T = TicketState
TRANSITIONS: frozenset[tuple[TicketState, TicketState]] = frozenset(
    {
        (T.OPEN, T.FETCHING),
        (T.OPEN, T.RELEASED),
        (T.OPEN, T.EXPIRED),
        (T.FETCHING, T.REDEEMED),
        (T.FETCHING, T.STOPPING),
        (T.STOPPING, T.OPEN),
        (T.STOPPING, T.RELEASED),
        (T.STOPPING, T.EXPIRED),
        (T.REDEEMED, T.RELEASED),
    }
)
ENDED = frozenset({T.REDEEMED, T.RELEASED, T.EXPIRED})
READ = frozenset({T.FETCHING, T.STOPPING})  # somebody reads the pages, or did a moment ago
# Of two reasons to stop, the stronger stays: a ticket that was released is never open again.
_STRENGTH = {T.OPEN: 0, T.EXPIRED: 1, T.RELEASED: 2}


@dataclass(eq=False)
class Ticket:
    """`epoch` is the highest binding number seen; 0 = never bound. `moving`: of a sequence that
    decodes on at its owner."""

    id: str
    request_id: str
    num_tokens: int
    ttl_s: float
    opened_at: float
    moving: bool = False
    state: TicketState = T.OPEN
    epoch: int = 0
    expires_at: float = 0.0
    after_stop: TicketState = T.OPEN
    story: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.expires_at = self.opened_at + self.ttl_s
        self.story.append(f"{self.opened_at:.3f} open" + (" (moving)" if self.moving else ""))

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def read(self) -> bool:
        """Whether somebody may be reading the pages."""
        return self.state in READ

    @property
    def pinned(self) -> bool:
        """Whether it keeps the sequence's pages where they are."""
        return self.read or (self.state is T.OPEN and not self.moving)

    def renew(self, now: float) -> None:
        self.expires_at = max(self.expires_at, now + self.ttl_s)

    def redeem(self, epoch: int, now: float) -> None:
        """OPEN -> FETCHING for a new binding. Raises TicketError for an old epoch, or when it is
        over. A ticket that is still being fetched must be stopped first."""
        self.check_epoch(epoch)
        if self.state is not T.OPEN:
            raise TicketError(f"ticket {self.id} is {self.state}: {'; '.join(self.story)}")
        self.epoch = epoch
        self.renew(now)
        self._move(T.FETCHING, now, f"epoch {epoch}")

    def check_epoch(self, epoch: int) -> None:
        """Raises TicketError unless `epoch` is higher than any seen."""
        if epoch <= self.epoch:
            raise TicketError(
                f"ticket {self.id}: epoch {epoch} is not above {self.epoch}: "
                f"{'; '.join(self.story)}"
            )

    def received(self, epoch: int, now: float) -> None:
        """The receiver of `epoch` has everything. Raises TicketError when that binding is over."""
        if self.state is not T.FETCHING or epoch != self.epoch:
            raise TicketError(f"ticket {self.id}: epoch {epoch} is no longer fetching it")
        self._move(T.REDEEMED, now)

    def stop(self, then: TicketState, now: float, why: str) -> None:
        """End the running fetch: STOPPING until stopped(). Of two ends the stronger stays."""
        if self.state is T.FETCHING:
            self.after_stop = then
            self._move(T.STOPPING, now, why)
        elif self.state is T.STOPPING and _STRENGTH[then] > _STRENGTH[self.after_stop]:
            self.after_stop = then
            self.story.append(f"{now:.3f} then {then} ({why})")

    def stopped(self, now: float) -> None:
        """Nobody reads the pages any more."""
        if self.state is T.STOPPING:
            self._move(self.after_stop, now)

    def release(self, epoch: int | None, now: float, why: str = "release") -> bool:
        """Idempotent. An epoch below the ticket's is ignored (False): its binding is over and the
        pages serve another. None is the owner's own word and always counts."""
        if epoch is not None and epoch < self.epoch:
            return False
        return self._end(T.RELEASED, now, why)

    def expire(self, now: float) -> bool:
        """End the ticket if its lease is over. True if that changed anything."""
        if now < self.expires_at or (self.state is T.STOPPING and self.after_stop is not T.OPEN):
            return False
        return self._end(T.EXPIRED, now, "lease over")

    def _end(self, to: TicketState, now: float, why: str) -> bool:
        match self.state:
            case T.OPEN:
                self._move(to, now, why)
            case T.FETCHING | T.STOPPING:
                self.stop(to, now, why)
            case T.REDEEMED if to is T.RELEASED:
                self._move(to, now, why)
            case _:
                return False
        return True

    def _move(self, to: TicketState, now: float, why: str = "") -> None:
        assert (self.state, to) in TRANSITIONS, f"{self.state} -> {to}: {self.story}"
        self.state = to
        self.story.append(f"{now:.3f} {to}" + (f" ({why})" if why else ""))


class TicketTable:
    """All tickets of one worker. `on_end(ticket)` runs once for each, when nobody can fetch it any
    more and its pages are free to go."""

    KEPT = 256  # ended tickets remembered, for stories and late messages

    def __init__(self, on_end: Callable[[Ticket], None]) -> None:
        self._live: dict[str, Ticket] = {}
        self._ended: dict[str, Ticket] = {}
        self._on_end = on_end

    def add(self, ticket: Ticket) -> None:
        self._live[ticket.id] = ticket

    def get(self, ticket_id: str) -> Ticket:
        """Raises TicketError when it is over or was never here."""
        ticket = self._live.get(ticket_id)
        if ticket is None:
            past = self._ended.get(ticket_id)
            story = "; ".join(past.story) if past else "never here, or long gone"
            raise TicketError(f"ticket {ticket_id} is over: {story}")
        return ticket

    def find(self, ticket_id: str) -> Ticket | None:
        return self._live.get(ticket_id)

    def settle(self, ticket: Ticket) -> None:
        """Call after each change: files away what has ended."""
        if ticket.ended and self._live.pop(ticket.id, None) is not None:
            self._ended[ticket.id] = ticket
            if len(self._ended) > self.KEPT:
                del self._ended[next(iter(self._ended))]
            self._on_end(ticket)

    def live(self) -> list[Ticket]:
        return list(self._live.values())

    def ended(self) -> list[Ticket]:
        return list(self._ended.values())

    def check_integrity(self, held_for: Iterable[str]) -> None:
        """Raise AssertionError unless `held_for`, the tickets for whom a sequence is kept, are
        exactly those that are not over."""
        live = set(self._live)
        over = {id_ for id_, ticket in self._live.items() if ticket.ended}
        assert not over, f"ended and not filed away: {over}"
        assert not live & set(self._ended), "a ticket is open and over"
        assert live == set(held_for), f"a ticket without a sequence, or the reverse: {live}"
