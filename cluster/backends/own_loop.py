"""An event loop on a thread of its own, for what must not share the loop of a Ray actor."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import uvloop

from workers.core.errors import Unavailable

T = TypeVar("T")
Serve = Callable[[asyncio.Event, Callable[[T], None]], Coroutine[Any, Any, None]]
BEAT_S = 5.0  # for the loop to have its turn


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


class OwnService(Generic[T]):
    """Something that serves on a loop of its own until its event is set, and says where."""

    def __init__(self, name: str, serve: Serve[T]) -> None:
        self.where: Future[T] = Future()
        self._name = name
        self._stop: asyncio.Event | None = None
        self._own = OwnLoop(f"kvasir-{name}")
        self._life = self._own.run(self._live(serve))

    async def _live(self, serve: Serve[T]) -> None:
        self._stop = asyncio.Event()
        await serve(self._stop, self.where.set_result)

    async def serves(self) -> None:
        """Until it does. Raises what ended it before."""
        await first_of(self.where, self._life)

    async def check_health(self) -> None:
        """Raises Unavailable, or what ended it."""
        check_alive(self._life)
        if not await self._own.beats(BEAT_S):
            raise Unavailable(f"the {self._name}: nothing moves")

    async def end(self) -> None:
        self._own.run(self._ask())
        await asyncio.wait([asyncio.wrap_future(self._life)])

    async def _ask(self) -> None:
        if self._stop is not None:
            self._stop.set()


async def first_of(ready: Future[Any], life: Future[None]) -> None:
    """Until it is ready. Raises what ended its life before."""
    waits = [asyncio.wrap_future(ready), asyncio.wrap_future(life)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        check_alive(life)


def check_alive(life: Future[None]) -> None:
    """Raises what ended it."""
    if life.done():
        life.result()
        raise Unavailable("it has left")
