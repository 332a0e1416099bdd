"""Decode calls to one worker, all of them in one stream.

The stream is opened with the first call, and again after it broke: that fails every call in it at
once. A call that nobody reads holds up no other one; its tokens join into one event meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio

from workers.core.errors import Code, KvasirError, Overloaded
from workers.wire import worker_pb2 as worker

MOST_UNREAD = 1 << 16  # tokens of a call: 3 MB, with the logprobs of 20 alternatives 45 MB

SAY_AFTER = 2  # messages read, where no call says it: of the four that may lie unread

ErrorOf: TypeAlias = Callable[[str, str], KvasirError]


class DecodeFailed(KvasirError):
    """A call's end as the worker said it, by the name of its code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.status = code


class DecodeClient:
    """`open_stream` is a stub's Decode. `error_of` (code, message): what readers get."""

    def __init__(
        self,
        open_stream: Callable[[AsyncIterator[worker.DecodeCall]], Any],
        error_of: ErrorOf = DecodeFailed,
    ) -> None:
        self._open_stream = open_stream
        self._error_of = error_of
        self._line: _Line | None = None

    def start(self, request: worker.DecodeRequest) -> DecodeStream:
        """Raises what `error_of` makes of a channel that is closed."""
        if self._line is None or self._line.broken:
            try:
                self._line = _Line(self._open_stream, self._error_of)
            except grpc.aio.UsageError as error:
                raise self._error_of(Code.UNAVAILABLE, str(error)) from None
        return self._line.start(request)

    @property
    def num_open(self) -> int:
        """Calls under way."""
        return len(self._line.calls) if self._line is not None else 0

    async def close(self) -> None:
        """Calls that are open fail."""
        if self._line is not None:
            self._line.reading.cancel()
            await asyncio.wait([self._line.reading])


class DecodeStream:
    """One call. `ended`: by the worker, nothing is left to cancel there."""

    def __init__(self, line: _Line, number: int) -> None:
        self.ended = False
        self._line = line
        self._number = number
        self._events: deque[worker.DecodeEvent] = deque()
        self._error: KvasirError | None = None  # after the events
        self._news: asyncio.Future[None] | None = None  # somebody waits for it

    async def read(self) -> worker.DecodeEvent | None:
        """The next event, tokens that came meanwhile in one; None = the worker ended the call well.
        Raises what error_of says, and Overloaded to who read too slowly. One reader at a time."""
        while not self._events:
            if self._error is not None:
                raise self._error
            if self.ended:
                return None
            assert self._news is None, "two readers"
            self._news = self._line.loop.create_future()
            try:
                await self._news
            finally:
                self._news = None
        return self._events.popleft()

    def abort(self, reason: str) -> None:
        """Make the reader see Unavailable at once, and the worker forget the call."""
        self._cut(self._line.error_of(Code.UNAVAILABLE, reason))

    def cancel(self) -> None:
        self.abort("the call was cancelled")

    def take(self, event: worker.DecodeEvent) -> None:
        """For the line: the worker said this."""
        if event.HasField("end"):
            end = event.end
            self.over(self._line.error_of(end.code, end.message) if end.code else None)
            return
        if self._events and event.HasField("tokens"):
            last = self._events[-1]
            if last.HasField("tokens") and last.attempt == event.attempt:
                last.tokens.MergeFrom(event.tokens)
                if len(last.tokens.tokens) > MOST_UNREAD:
                    behind = f"{len(last.tokens.tokens)} tokens wait for their reader"
                    self._cut(Overloaded(behind))
                return
        self._events.append(event)
        self._wake()

    def over(self, error: KvasirError | None) -> None:
        """For the line: nothing more comes."""
        self.ended = True
        self._error = error
        self._line.calls.pop(self._number, None)
        self._wake()

    def _cut(self, error: KvasirError) -> None:
        """It ends here, whatever is unread."""
        if self.ended or self._error is not None:
            return
        self._error = error
        self._events.clear()
        self._line.cancel(self._number)
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def __aiter__(self) -> DecodeStream:
        return self

    async def __anext__(self) -> worker.DecodeEvent:
        event = await self.read()
        if event is None:
            raise StopAsyncIteration
        return event


class _Line:
    """One stream and the calls in it. Numbers are its own: nothing of an older one is mistaken."""

    def __init__(self, open_stream: Callable[..., Any], error_of: ErrorOf) -> None:
        self.error_of = error_of
        self.loop = asyncio.get_running_loop()  # asking for it costs a system call
        self.broken = False
        self.calls: dict[int, DecodeStream] = {}
        self._numbers = itertools.count(1)
        self._read_since = 0  # messages that the worker has not heard of
        self._up: asyncio.Queue[worker.DecodeCall | None] = asyncio.Queue()  # None: no more
        self._rpc = open_stream(self._requests())
        self.reading = asyncio.create_task(self._read(), name="decode stream")

    def start(self, request: worker.DecodeRequest) -> DecodeStream:
        number = next(self._numbers)
        stream = self.calls[number] = DecodeStream(self, number)
        self._say(worker.DecodeCall(call=number, start=request))
        return stream

    def cancel(self, number: int) -> None:
        del self.calls[number]
        self._say(worker.DecodeCall(call=number, cancel=worker.DecodeCancel()))

    def _say(self, message: worker.DecodeCall) -> None:
        message.steps_read, self._read_since = self._read_since, 0
        self._up.put_nowait(message)

    async def _requests(self) -> AsyncIterator[worker.DecodeCall]:
        while (message := await self._up.get()) is not None:
            yield message

    async def _read(self) -> None:
        why = "the worker ended the stream"
        try:
            while (step := await self._rpc.read()) is not grpc.aio.EOF:
                for event in step.events:
                    stream = self.calls.get(event.call)
                    if stream is not None:  # else it was cancelled meanwhile
                        stream.take(event)
                self._read_since += 1
                if self._read_since >= SAY_AFTER:
                    self._say(worker.DecodeCall())
        except grpc.aio.AioRpcError as error:
            why = f"{error.code().name}: {error.details()}"
        except asyncio.CancelledError:  # also when the channel is closed under it
            why = "the connection was closed"
            raise
        finally:
            self.broken = True
            self._rpc.cancel()
            self._up.put_nowait(None)  # grpc would wait for more of a stream that is over
            for stream in list(self.calls.values()):
                stream.over(self.error_of(Code.UNAVAILABLE, why))
