"""From the engine to whoever follows a sequence, without what makes asyncio's queues slow: every
token of every sequence comes this way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from workers.core.batch import SequenceUpdate
from workers.core.errors import KvasirError

MOST_JOINED = 256  # tokens: messages that carry them have a limit


class Inbox:
    """One sequence's updates, to its end or its error."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[SequenceUpdate | KvasirError] = deque()
        self._news: asyncio.Future[None] | None = None

    def put(self, what: SequenceUpdate | KvasirError) -> None:
        self._items.append(what)
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def read(self) -> AsyncIterator[SequenceUpdate]:
        while True:
            while not self._items:
                self._news = self._loop.create_future()
                await self._news
            update = self._items.popleft()
            if isinstance(update, KvasirError):
                raise update
            if self._items:
                update = self._joined(update)
            yield update
            if update.finished:
                return

    def _joined(self, first: SequenceUpdate) -> SequenceUpdate:
        """With what came since, but for an error."""
        tokens, finished = list(first.tokens), first.finished
        while self._items and len(tokens) < MOST_JOINED:
            later = self._items[0]
            if isinstance(later, KvasirError):
                break
            self._items.popleft()
            tokens += later.tokens
            finished = later.finished
        return SequenceUpdate(first.sequence, tuple(tokens), finished)
