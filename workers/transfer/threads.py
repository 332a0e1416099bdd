"""Blocking calls on daemon threads, so that one that never returns cannot hold up the process."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def on_thread(function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
    """Run it on a new daemon thread. Cancelling the future leaves the thread to end by itself."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(error: BaseException | None, result: T | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        error, result = None, None
        try:
            result = function(*args)
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, error, result)

    threading.Thread(target=run, name=f"kvasir-{function.__name__}", daemon=True).start()
    return future


class CallThread:
    """One daemon thread for calls that block and raise nothing: they run one after another."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def run(self, call: Callable[[], T], done: Callable[[T], None]) -> None:
        """`done` is called on the event loop with what `call` returned."""
        self._calls.put(lambda: self._tell(done, call()))

    def close(self) -> None:
        """The thread ends after the calls given before."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # what it holds is free while the next one is waited for

    def _tell(self, done: Callable[[T], None], result: T) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(done, result)
