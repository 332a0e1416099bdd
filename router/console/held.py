"""An answer that is made at most once a second, however many ask for it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from workers.core.clock import Clock

T = TypeVar("T")

EVERY_S = 1.0


class Held(Generic[T]):
    """Nobody asks: nothing is made. Who comes while it is being made waits for that one."""

    def __init__(
        self, make: Callable[[], Awaitable[T]], clock: Clock, every_s: float = EVERY_S
    ) -> None:
        self._make = make
        self._clock = clock
        self._every_s = every_s
        self._made_at = -math.inf
        self._value: T | None = None
        self._lock = asyncio.Lock()

    async def get(self) -> T:
        async with self._lock:
            if self._value is None or self._clock.now() - self._made_at >= self._every_s:
                self._value = await self._make()
                self._made_at = self._clock.now()
            return self._value
