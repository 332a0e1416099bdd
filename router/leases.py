"""Renews the tickets of requests under way, all of one prefill worker in one call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from router.flight import Binding
from router.replica import Replica
from workers.core.errors import KvasirError

log = logging.getLogger(__name__)

RENEW_EVERY_S = 2.0


class Leases:
    """run() renews until cancelled. A renewal that fails is no news: the next one, or whoever
    redeems the ticket, will say what is true. A ticket that its worker no longer knows is lost;
    `on_lost` is called then."""

    def __init__(self, on_lost: Callable[[], None], every_s: float = RENEW_EVERY_S) -> None:
        self._on_lost = on_lost
        self._every_s = every_s
        self._held: dict[Replica, dict[str, Binding]] = {}

    @contextmanager
    def hold(self, binding: Binding) -> Iterator[None]:
        """Renews its ticket on its prefill worker while the block runs."""
        ticket_id = binding.ticket.id
        self._held.setdefault(binding.replica, {})[ticket_id] = binding
        try:
            yield
        finally:
            self._drop(binding.replica, ticket_id)

    @property
    def num_held(self) -> int:
        return sum(len(tickets) for tickets in self._held.values())

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            async with asyncio.TaskGroup() as tasks:
                for replica, tickets in self._held.items():
                    tasks.create_task(self._renew(replica, sorted(tickets)))

    async def _renew(self, replica: Replica, tickets: list[str]) -> None:
        try:
            unknown = await replica.client.renew(tickets)
        except KvasirError as error:
            log.info("%d tickets of %s not renewed: %s", len(tickets), replica.id, error.message)
            return
        gone = sorted(unknown & self._held.get(replica, {}).keys())
        for ticket_id in gone:
            self._held[replica][ticket_id].lost = True
            self._drop(replica, ticket_id)
        if gone:
            log.info("replica %s no longer knows tickets %s", replica.id, ", ".join(gone))
            self._on_lost()

    def _drop(self, replica: Replica, ticket_id: str) -> None:
        tickets = self._held.get(replica, {})
        tickets.pop(ticket_id, None)
        if not tickets:
            self._held.pop(replica, None)
