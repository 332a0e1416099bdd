"""The worker's end of a Decode stream: many calls of one client, one message a step.

Speaks messages, not gRPC. What a step says to the calls is collected while they have their turns
and written at once. While four messages are unread, or the events of a whole one wait for the wire,
calls stand still after their next event, and the engine's tokens for them join into one: cost per
token falls with load.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial

from workers.core.errors import Code, KvasirError
from workers.core.trace import speak_of
from workers.wire import worker_pb2 as worker

log = logging.getLogger(__name__)

MOST_UNREAD = 4  # messages
# Of a message. An event is a token, or as many as an Inbox joins: with logprobs of 20 alternatives,
# 300 bytes each, that is below 40 MB.
MOST_EVENTS = 512


class DecodeServer:
    """One stream. `run` computes a call; `write` may wait for the client. More than `most_calls` at
    once are refused, so that nobody fills our memory with them."""

    def __init__(
        self,
        run: Callable[[worker.DecodeRequest], AsyncIterator[worker.DecodeEvent]],
        write: Callable[[worker.DecodeStep], Awaitable[None]],
        most_calls: int,
    ) -> None:
        self._run = run
        self._write = write
        self._most_calls = most_calls
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._outbox: list[worker.DecodeEvent] = []
        self._news = asyncio.Event()
        self._room = asyncio.Semaphore(MOST_UNREAD)
        self._flowing = asyncio.Event()  # what is said now is written soon
        self._flowing.set()
        self._over = False

    async def serve(
        self, incoming: AsyncIterator[worker.DecodeCall], leaving: asyncio.Event
    ) -> None:
        """Until the client starts no more calls, or the worker leaves, and all calls are over.
        Cancelled, it frees everything that they hold."""
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(self._write_steps())
            reading = tasks.create_task(self._read(incoming, tasks))
            left = tasks.create_task(leaving.wait())
            await asyncio.wait([reading, left], return_when=asyncio.FIRST_COMPLETED)
            while self._calls:
                await asyncio.wait(list(self._calls.values()))
            reading.cancel()
            left.cancel()
            self._over = True
            self._news.set()
            await writing

    @property
    def busy(self) -> bool:
        """A call runs, or something is unwritten that somebody may want."""
        return bool(self._calls)

    async def _read(
        self, incoming: AsyncIterator[worker.DecodeCall], tasks: asyncio.TaskGroup
    ) -> None:
        async for message in incoming:
            for _ in range(message.steps_read):
                self._room.release()
            number = message.call
            if message.HasField("cancel"):
                if number in self._calls:
                    self._calls[number].cancel()
            elif not message.HasField("start"):
                continue
            elif len(self._calls) >= self._most_calls:
                self._end(number, Code.RESOURCE_EXHAUSTED, "too many calls at once")
            elif number not in self._calls:
                task = tasks.create_task(self._follow(number, message.start))
                self._calls[number] = task
                task.add_done_callback(partial(self._gone, number))

    def _gone(self, number: int, task: asyncio.Task[None]) -> None:
        del self._calls[number]

    async def _follow(self, number: int, request: worker.DecodeRequest) -> None:
        speak_of(request.sequence.request_id, request.sequence.traceparent)
        try:
            async with aclosing(self._run(request)) as events:  # type: ignore[type-var]
                async for event in events:
                    event.call = number
                    self._say(event)
                    if not self._flowing.is_set():
                        await self._flowing.wait()
        except KvasirError as error:
            self._end(number, error.code, error.message)
        except Exception as error:  # our bug: it must not end the calls beside it
            log.exception("%s: unexpected", request.sequence.request_id)
            self._end(number, Code.INTERNAL, f"unexpected: {error!r}")
        else:
            self._end(number, "", "")

    def _end(self, number: int, code: str, message: str) -> None:
        end = worker.End(code=code, message=message)
        self._say(worker.DecodeEvent(call=number, end=end))

    def _say(self, event: worker.DecodeEvent) -> None:
        """Written with all else that is said before the writer has its turn."""
        self._outbox.append(event)
        self._news.set()
        if len(self._outbox) >= MOST_EVENTS:
            self._flowing.clear()  # a message is under way, and the wire does not take it

    async def _write_steps(self) -> None:
        while self._outbox or not self._over:
            if not self._outbox:
                self._news.clear()
                await self._news.wait()
                continue
            if self._room.locked():
                self._flowing.clear()
            await self._room.acquire()
            events = self._outbox[:MOST_EVENTS]
            del self._outbox[:MOST_EVENTS]
            if len(self._outbox) < MOST_EVENTS:
                self._flowing.set()
            await self._write(worker.DecodeStep(events=events))
