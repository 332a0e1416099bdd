"""What a router does for one request, in small: whoever says a token, each position comes once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from tests.sim.house import House
from workers.core.errors import KvasirError
from workers.core.request import Request
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.codec import request_to_wire
from workers.worker import Worker

ATTEMPTS = 20


class Stream:
    """A call that runs whether or not anybody reads. `failed` is called with its error at once."""

    def __init__(
        self, events: AsyncIterator[Any], failed: Callable[[KvasirError], None] = lambda _: None
    ) -> None:
        self._events = events
        self._failed = failed
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._task = asyncio.create_task(self._pump())

    async def _pump(self) -> None:
        try:
            async for event in self._events:
                self._inbox.put_nowait(event)
            self._inbox.put_nowait(None)
        except KvasirError as error:
            self._failed(error)
            self._inbox.put_nowait(error)
        finally:
            await self._events.aclose()  # type: ignore[attr-defined]

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (item := await self._inbox.get()) is not None:
            if isinstance(item, KvasirError):
                raise item
            yield item

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


class Carrier:
    """`tokens`: prompt and output so far; `at`: when each of the output came; `log`: events other
    than tokens, by name; `moved`: sequences that somebody else went on with."""

    def __init__(self, house: House, what: Request, decoders: list[str]) -> None:
        self.tokens = list(what.token_ids)
        self.at: list[float] = []
        self.log: list[str] = []
        self.moved = 0
        self.failures: list[KvasirError] = []
        self.admitted = worker.Admitted()
        self._house = house
        self._what = what
        self.decoders = decoders
        self._open: list[Stream] = []

    @property
    def output(self) -> list[int]:
        return self.tokens[len(self._what.token_ids) :]

    async def go(self, prefiller: str, *, early: bool = False) -> list[int]:
        """The whole output; failures of workers are mended as a router mends them."""
        for _ in range(ATTEMPTS):
            try:
                await self._attempt(self._house.workers[prefiller], early)
                return self.output
            except KvasirError as error:
                self.failures.append(error)
                await asyncio.sleep(0.05)
            finally:
                await self.leave()
        raise AssertionError(f"it never ends: {self.failures}")

    async def aggregated(self, name: str) -> list[int]:
        """The same, begun on an aggregated worker."""
        try:
            message = worker.DecodeRequest(sequence=self.spec())
            await self._read(self._call(self._house.workers[name].aggregated.decode(message)), name)
            return self.output
        finally:
            await self.leave()

    async def leave(self) -> None:
        while self._open:
            await self._open.pop().close()

    async def decoded(self, count: int) -> None:
        """Until so many tokens have come."""
        async with asyncio.timeout(60):
            while len(self.output) < count:
                await asyncio.sleep(0.0005)

    async def said(self, what: str) -> None:
        """Until it stands in the log."""
        async with asyncio.timeout(60):
            while what not in self.log:
                await asyncio.sleep(0.0005)

    async def _attempt(self, p: Worker, early: bool) -> None:
        stream = self._call(p.prefill.prefill(worker.PrefillRequest(sequence=self.spec())))
        decode: Stream | None = None
        async for event in stream:
            if event.HasField("opened"):
                ticket = event.opened.ticket
                if early:
                    decode = self._decode(self.decoders[0], ticket)
            if event.HasField("first_token"):
                self._accept([event.first_token.token])
                if event.first_token.finish_reason:
                    return
        if decode is None:
            decode = self._decode(self.decoders[0], ticket)
        await self._read(decode, self.decoders[0])

    async def _read(self, stream: Stream, name: str) -> None:
        """To the end; who takes over is called when it is offered, and read when it has it."""
        taker: tuple[Stream, str] | None = None
        async for event in stream:
            match event.WhichOneof("event"):
                case "tokens":
                    self._accept(event.tokens.tokens)
                    if event.tokens.finish_reason:
                        return
                case "moving":
                    self.log.append(f"moving from {name}")
                    taker = self._taker(name, event.moving.ticket)
                case "moved":
                    self.log.append(f"moved from {name}")
                    self.moved += 1
                    assert taker is not None
                    return await self._read(*taker)
                case "admitted":
                    self.admitted = event.admitted
                case other:
                    self.log.append(other)
        raise AssertionError(f"{name} ended without a word: {self.log}")

    def _taker(self, giver: str, ticket: common.Ticket) -> tuple[Stream, str] | None:
        name = next((other for other in reversed(self.decoders) if other != giver), None)
        if name is None:
            return None
        desk = self._house.workers[giver].desk

        def failed(error: KvasirError) -> None:
            self.failures.append(error)
            desk.release(worker.ReleaseRequest(ticket_id=ticket.id, epoch=1))

        return self._decode(name, ticket, failed), name

    def _decode(
        self,
        name: str,
        ticket: common.Ticket,
        failed: Callable[[KvasirError], None] = lambda _: None,
    ) -> Stream:
        message = worker.DecodeRequest(sequence=self.spec(), ticket=ticket, epoch=1)
        return self._call(self._house.workers[name].decode.decode(message), failed)

    def _call(
        self, events: AsyncIterator[Any], failed: Callable[[KvasirError], None] = lambda _: None
    ) -> Stream:
        self._open.append(Stream(events, failed))
        return self._open[-1]

    def spec(self) -> worker.SequenceSpec:
        return request_to_wire(replace(self._what, token_ids=tuple(self.tokens)))

    def _accept(self, tokens: Any) -> None:
        for token in tokens:
            assert token.position == len(self.tokens), (token.position, len(self.tokens), self.log)
            self.tokens.append(token.id)
            self.at.append(asyncio.get_running_loop().time())
