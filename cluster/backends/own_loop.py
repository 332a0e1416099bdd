"""An event loop on a thread of its own, for what must not share the loop of a Ray actor."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


class OwnLoop:
    """Ends with the process."""

    def __init__(self, name: str) -> None:
        self._loop = uvloop.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name=name, daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def beats(self, within_s: float) -> bool:
        """Whether it has its turn in time: nothing blocks it. Asked from another loop."""
        beat = asyncio.wrap_future(self.run(asyncio.sleep(0)))
        try:
            async with asyncio.timeout(within_s):
                await beat
        except TimeoutError:
            return False
        return True
