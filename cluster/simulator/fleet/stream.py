"""One call to a simulated worker, as the router reads it: a WorkerStream without a wire."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from router.worker_client import WorkerFailed
from workers.core.errors import KvasirError
from workers.core.request import SampledToken
from workers.wire import common_pb2 as common

TOKEN = 0  # that every sequence samples every time


class SimStream:
    """`left` is called once, where the reader goes before the worker has ended the call."""

    def __init__(self, where: str, left: Callable[[], None] = lambda: None) -> None:
        self.ended = False  # by the worker, and read so far
        self.left = left
        self._where = where
        self._said: deque[Any] = deque()
        self._over: KvasirError | None = None
        self._closed = False  # by the worker
        self._aborted: str | None = None
        self._reader: asyncio.Future[None] | None = None

    # -- the worker's side -----------------------------------------------------------------------

    def put(self, event: Any) -> None:
        self._said.append(event)
        self._wake()

    def close(self, error: KvasirError | None = None) -> None:
        """The worker's last word. Idempotent."""
        if not self._closed:
            self._closed, self._over = True, error
            self._wake()

    # -- the router's side -----------------------------------------------------------------------

    def abort(self, reason: str) -> None:
        """Makes the reader see WorkerFailed at once."""
        if self._aborted is None:
            self._aborted = reason
            self._leave()
            self._wake()

    def cancel(self) -> None:
        self.abort("the call was cancelled")

    async def read(self, silence_s: float | None = None) -> Any:
        """The next message; None: the worker ended the call well. Raises KvasirError. A simulated
        worker is never silent: with its death its streams end."""
        while True:
            if self._aborted is not None:
                raise WorkerFailed(f"{self._where}: {self._aborted}")
            if self._said:
                return self._said.popleft()
            if self._closed:
                self.ended = True
                if self._over is not None:
                    raise self._over
                return None
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader

    def _leave(self) -> None:
        if not self._closed:
            self._closed = True
            self.left()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Tokens:
    """All that there are, made once."""

    def __init__(self) -> None:
        self._made: tuple[SampledToken, ...] = ()

    def between(self, first: int, end: int) -> tuple[SampledToken, ...]:
        """At positions first..end-1."""
        known = len(self._made)
        if end > known:
            more = range(known, max(end, 2 * known))
            self._made += tuple(SampledToken(TOKEN, position) for position in more)
        return self._made[first:end]


class SimTokens(NamedTuple):
    """A worker.Tokens, decoded."""

    tokens: tuple[SampledToken, ...]
    finish_reason: common.FinishReason


class SimTokensEvent(NamedTuple):
    """A DecodeEvent with the tokens of many steps."""

    attempt: int
    tokens: SimTokens

    def HasField(self, name: str) -> bool:
        return name == "tokens"
