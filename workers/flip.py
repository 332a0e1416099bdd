"""A change of role: what runs here and does not fit the new one goes elsewhere, or ends here.

The new role holds at once for what comes. Weights, prefix blocks and open tickets stay as they are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from workers.core.clock import Clock
from workers.core.request import Sequence
from workers.core.roles import RoleName
from workers.live import LiveSequences
from workers.metrics import Meter

log = logging.getLogger("kvasir.worker")
POLL_S = 0.02
OFFER_AGAIN_S = 2.0  # what nobody took


class Flip:
    """`unfit(role)`: what runs here now and a replica of this role would not get."""

    def __init__(
        self,
        live: LiveSequences,
        unfit: Callable[[RoleName], set[Sequence]],
        clock: Clock,
        meter: Meter,
    ) -> None:
        self._live = live
        self._unfit = unfit
        self._clock = clock
        self._meter = meter
        self._role: RoleName = "aggregated"
        self._changed = asyncio.Event()

    def to(self, role: RoleName) -> None:
        self._role = role
        self._changed.set()

    async def run(self) -> None:
        """Sees to each change until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._clear()

    async def _clear(self) -> None:
        """Until nothing is left of what was unfit at the change, or the role changes again. Only
        what decodes can move; a prompt that is being computed ends where it is."""
        role = self._role
        began = offer_at = self._clock.now()
        leaving = self._unfit(role)
        while leaving:
            if role == "prefill" and self._clock.now() >= offer_at:
                for seq in leaving:
                    self._live.move(seq.id)
                offer_at = self._clock.now() + OFFER_AGAIN_S
            await asyncio.sleep(POLL_S)
            if self._changed.is_set():
                return
            leaving &= self._unfit(role)
        took_s = self._clock.now() - began
        self._meter.role_changed(took_s)
        log.info("%s from now on; what did not fit was gone after %.3f s", role, took_s)
