"""The only reader of the wall clock, and a virtual one.

All waiting anywhere is asyncio.sleep or an asyncio timeout, so the whole house runs on VirtualLoop:
an event loop whose time jumps to the next timer as soon as nothing is ready.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Seconds that only grow; the origin means nothing."""

    def now(self) -> float: ...


class SystemClock:
    def now(self) -> float:
        return time.monotonic()


class VirtualClock:
    """Reads the loop it is used in: virtual there, monotonic elsewhere."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()


def unix_time() -> float:
    """Seconds since 1970, for stamps that people and other machines read."""
    return time.time()


class Deadlock(RuntimeError):
    """Every task waits and no timer is set: in virtual time nothing can ever happen again."""


class _JumpingSelector(selectors.SelectSelector):
    """Instead of sleeping for `timeout`, moves the loop's time on by it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("virtual time has no next event")
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time. Threads and sockets are not for it."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run on a VirtualLoop: returns main's result, cancels what it left behind."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
