"""Small ways of waiting that asyncio lacks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Offload(Protocol):
    """Runs a blocking copy: on a thread in a worker, inline in virtual time."""

    def __call__(self, function: Callable[..., T], *args: Any) -> Awaitable[T]: ...


async def inline(function: Callable[..., T], *args: Any) -> T:
    """The Offload for simulation and tests."""
    return function(*args)


async def happens(event: asyncio.Event, within_s: float) -> bool:
    """Wait for `event`, but no longer than `within_s`; whether it is set then."""
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()


async def to_the_end(work: Awaitable[T]) -> T:
    """Await `work` even through cancellation, which is raised once it is over: for copies whose
    pages must not be given away while a thread still touches them."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:
            break
    if cancelled is not None:
        raise cancelled
    return task.result()


async def with_heartbeats(
    stream: AsyncIterator[T], beat: Callable[[], T], interval_s: float
) -> AsyncIterator[T]:
    """`stream`, with a beat() whenever it has been silent for `interval_s`."""
    end = object()
    pending: asyncio.Task[T | object] | None = None
    try:
        while True:
            pending = asyncio.ensure_future(_next(stream, end))
            while not pending.done():
                await asyncio.wait({pending}, timeout=interval_s)
                if not pending.done():
                    yield beat()
            item = pending.result()
            if item is end:
                return
            yield item  # type: ignore[misc]
    finally:
        if pending is not None:
            await let_go(pending)
        await stream.aclose()  # type: ignore[attr-defined]


async def let_go(task: asyncio.Future[Any]) -> None:
    """Cancel `task`, wait until it has ended, and do not care how it did."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


async def _next(stream: AsyncIterator[T], end: object) -> T | object:
    return await anext(stream, end)
