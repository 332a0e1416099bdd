"""What one end of a link has under way: each operation has a deadline, and the first failure ends
all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from workers.core.errors import TransferError


class Operations:
    """`ended` is called once, with the first failure, before those who wait hear of it."""

    def __init__(self, name: str, timeout_s: float, ended: Callable[[], None]) -> None:
        self.failed: str | None = None
        self._name = name
        self._timeout_s = timeout_s
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._pending: dict[asyncio.Future[None], asyncio.TimerHandle] = {}

    def begin(self) -> asyncio.Future[None]:
        """Done by finish(), by fail(), or at its deadline, which is a failure. Raises TransferError
        where the link has failed."""
        if self.failed is not None:
            raise self.error()
        done: asyncio.Future[None] = self._loop.create_future()
        late = f"no answer within {self._timeout_s:g} s"
        self._pending[done] = self._loop.call_later(self._timeout_s, self.fail, late)
        return done

    def finish(self, done: asyncio.Future[None]) -> None:
        timer = self._pending.pop(done, None)
        if timer is None:
            return  # it failed before
        timer.cancel()
        if not done.done():  # who waited was cancelled
            done.set_result(None)

    def fail(self, why: str) -> None:
        if self.failed is not None:
            return
        self.failed = why
        self._ended()
        pending, self._pending = self._pending, {}
        for done, timer in pending.items():
            timer.cancel()
            if not done.done():
                done.set_exception(self.error())
                done.exception()  # nobody may be waiting, and that is no fault

    def error(self) -> TransferError:
        return TransferError(f"{self._name}: {self.failed}")
