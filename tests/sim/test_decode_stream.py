"""Both ends of a Decode stream and a wire between them, in virtual time: calls that start, are read
slowly, are left, fail and end in any order, and streams that break."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import grpc
import grpc.aio
import pytest

from workers.core.clock import run_virtual
from workers.core.errors import Overloaded, TicketError
from workers.decode_server import MOST_UNREAD, DecodeServer
from workers.wire import common_pb2 as common
from workers.wire import decode_client
from workers.wire import worker_pb2 as worker
from workers.wire.decode_client import DecodeClient, DecodeFailed, DecodeStream

RUNS = 150


class Role:
    """Computes calls: `max_tokens` tokens, each `pace_s` after the one before; those whose salt is
    "fail" end with a TicketError instead of the finish, those with "bug" with something else."""

    def __init__(self, pace_s: Callable[[], float]) -> None:
        self.held: Counter[str] = Counter()
        self.pace_s = pace_s

    async def decode(self, request: worker.DecodeRequest) -> AsyncIterator[worker.DecodeEvent]:
        spec = request.sequence
        self.held[spec.request_id] += 1
        try:
            yield worker.DecodeEvent(attempt=spec.attempt, admitted=worker.Admitted())
            for position in range(spec.sampling.max_tokens):
                await asyncio.sleep(self.pace_s())
                token = common.Token(id=spec.prompt_len, position=position)
                yield worker.DecodeEvent(attempt=spec.attempt, tokens=worker.Tokens(tokens=[token]))
            if spec.cache_salt == "fail":
                raise TicketError(f"{spec.request_id} fails")
            if spec.cache_salt == "bug":
                raise RuntimeError("a bug")
        finally:
            self.held[spec.request_id] -= 1


class Wire:
    """A connection to one DecodeServer after another: DecodeClient's `open_stream`. Messages take
    `delay_s`; the server's wait while `window` of them are unread."""

    def __init__(self, role: Role, delay_s: Callable[[], float], window: int = 4) -> None:
        self.role = role
        self.delay_s = delay_s
        self.window = window
        self.streams: list[Stream] = []
        self.leaving = asyncio.Event()

    def open(self, requests: AsyncIterator[worker.DecodeCall]) -> Stream:
        stream = Stream(self, requests)
        self.streams.append(stream)
        return stream

    async def close(self) -> None:
        for stream in self.streams:
            stream.cancel()
            await asyncio.wait([stream.serving, stream.sending])


class Stream:
    def __init__(self, wire: Wire, requests: AsyncIterator[worker.DecodeCall]) -> None:
        self.steps: list[worker.DecodeStep] = []
        self._wire = wire
        self._up: asyncio.Queue[bytes] = asyncio.Queue()
        self._down: deque[bytes] = deque()
        self._status: Exception | object = None
        self._changed = asyncio.Condition()
        self.server = DecodeServer(wire.role.decode, self._write, most_calls=100)
        self.serving = asyncio.create_task(self._serve())
        self.sending = asyncio.create_task(self._send(requests))

    async def read(self) -> object:
        async with self._changed:
            await self._changed.wait_for(lambda: self._down or self._status is not None)
            if self._down:
                data = self._down.popleft()
                self._changed.notify_all()
                return worker.DecodeStep.FromString(data)
        if isinstance(self._status, Exception):
            raise self._status
        return grpc.aio.EOF

    def cancel(self) -> None:
        self.serving.cancel()
        self.sending.cancel()

    def breaks(self) -> None:
        """Both ends hear of it, each for itself."""
        self.cancel()
        code, nothing = grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata()
        self._status = grpc.aio.AioRpcError(code, nothing, nothing, "connection reset")

    async def _send(self, requests: AsyncIterator[worker.DecodeCall]) -> None:
        async for message in requests:
            await asyncio.sleep(self._wire.delay_s())
            self._up.put_nowait(message.SerializeToString())

    async def _incoming(self) -> AsyncIterator[worker.DecodeCall]:
        while True:
            yield worker.DecodeCall.FromString(await self._up.get())

    async def _serve(self) -> None:
        try:
            await self.server.serve(self._incoming(), self._wire.leaving)
        finally:
            self._status = self._status or grpc.aio.EOF
            async with self._changed:
                self._changed.notify_all()

    async def _write(self, step: worker.DecodeStep) -> None:
        self.steps.append(step)
        await asyncio.sleep(self._wire.delay_s())
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._down) < self._wire.window)
            self._down.append(step.SerializeToString())
            self._changed.notify_all()


def request(number: int, tokens: int, how: str = "") -> worker.DecodeRequest:
    spec = worker.SequenceSpec(
        request_id=f"r{number}", attempt=number, prompt_len=number, cache_salt=how
    )
    spec.sampling.max_tokens = tokens
    return worker.DecodeRequest(sequence=spec)


async def read(
    stream: DecodeStream, number: int, pace_s: Callable[[], float], leave_after: int = 1 << 30
) -> tuple[str, int]:
    """How it ended, and how many tokens came: each of this call, at its place."""
    told = 0
    try:
        while told < leave_after:
            event = await stream.read()
            if event is None:
                return "ok", told
            assert event.attempt == number
            for token in event.tokens.tokens:
                assert (token.id, token.position) == (number, told)
                told += 1
            await asyncio.sleep(pace_s())
    except DecodeFailed as error:
        assert stream.ended
        return error.status, told
    ended = stream.ended
    stream.cancel()
    if not ended:
        with pytest.raises(DecodeFailed, match="was cancelled"):
            await stream.read()
    return "left", told


async def play(seed: int) -> Counter[str]:
    draw = random.Random(seed)
    paces = [lambda: 0.0, lambda: 0.001, lambda: draw.expovariate(100.0)]
    role = Role(draw.choice(paces))
    wire = Wire(role, draw.choice(paces), window=draw.choice((1, 4, 100)))
    client = DecodeClient(wire.open)
    ended: Counter[str] = Counter()

    async def one(number: int) -> None:
        await asyncio.sleep(draw.uniform(0.0, 0.2))
        tokens, how = draw.randrange(60), draw.choice(("", "", "", "fail", "bug"))
        leaves = draw.choice((1 << 30, 1 << 30, draw.randrange(40)))
        pace = draw.choice((*paces, lambda: 0.5))
        stream = client.start(request(number, tokens, how))
        end, told = await read(stream, number, pace, leaves)
        assert told <= tokens
        if end == "ok":
            assert not how and told == tokens
        elif end in ("FAILED_PRECONDITION", "INTERNAL"):
            assert end == {"fail": "FAILED_PRECONDITION", "bug": "INTERNAL"}[how]
            assert told == tokens
        elif end == "left":
            assert told >= leaves
        else:
            assert end == "UNAVAILABLE" and breaks
        ended[end] += 1

    async def break_it() -> None:
        for _ in range(breaks):
            await asyncio.sleep(draw.uniform(0.0, 0.3))
            if wire.streams:
                wire.streams[-1].breaks()

    breaks = draw.choice((0, 0, 1, 3))
    calls = draw.randint(1, 12)
    async with asyncio.timeout(1000):
        await asyncio.gather(break_it(), *map(one, range(1, calls + 1)))
        await asyncio.sleep(10.0)
    assert ended.total() == calls
    assert not client.num_open and not +role.held
    assert len(wire.streams) <= 1 + breaks
    for stream in wire.streams:
        assert not stream.server.busy
    await client.close()
    await wire.close()
    return ended


def test_every_call_ends_once_gets_its_own_tokens_and_leaves_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended: Counter[str] = Counter()
    for seed in range(RUNS):
        try:
            ended += run_virtual(play(seed))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        caplog.clear()
    ways = {"ok", "left", "UNAVAILABLE", "FAILED_PRECONDITION", "INTERNAL"}
    assert set(ended) == ways and min(ended.values()) > 20, ended


def scene(play: Callable[[Wire, DecodeClient], Awaitable[None]]) -> None:
    async def run() -> None:
        wire = Wire(Role(lambda: 0.01), lambda: 0.0)
        client = DecodeClient(wire.open)
        await play(wire, client)
        assert not client.num_open
        await client.close()
        await wire.close()
        assert not +wire.role.held

    run_virtual(run())


def test_calls_in_step_share_messages() -> None:
    async def play(wire: Wire, client: DecodeClient) -> None:
        streams = [client.start(request(number, 20)) for number in range(1, 9)]
        ends = [read(stream, n, lambda: 0.0) for n, stream in enumerate(streams, 1)]
        assert await asyncio.gather(*ends) == [("ok", 20)] * 8
        (stream,) = wire.streams
        sizes = [len(step.events) for step in stream.steps]
        steady = sizes[MOST_UNREAD + 1 : -2]
        assert steady == [8] * len(steady) and len(steady) >= 18 and len(sizes) < 28

    scene(play)


def test_a_reader_that_stands_still_holds_up_nobody_and_finds_one_event() -> None:
    async def play(wire: Wire, client: DecodeClient) -> None:
        slow, quick = client.start(request(1, 500)), client.start(request(2, 500))
        assert await read(quick, 2, lambda: 0.0) == ("ok", 500)
        assert (event := await slow.read()) and event.HasField("admitted")
        assert (event := await slow.read()) and len(event.tokens.tokens) == 500
        assert slow.ended and await slow.read() is None

    scene(play)


def test_a_reader_too_far_behind_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_client, "MOST_UNREAD", 50)

    async def play(wire: Wire, client: DecodeClient) -> None:
        slow, other = client.start(request(1, 500)), client.start(request(2, 100))
        assert await read(other, 2, lambda: 0.0) == ("ok", 100)
        with pytest.raises(Overloaded, match="51 tokens wait"):
            await slow.read()
        await asyncio.sleep(0.1)
        assert not wire.role.held["r1"]

    scene(play)


def test_while_the_client_does_not_read_calls_stand_still() -> None:
    async def play() -> None:
        written: list[worker.DecodeStep] = []
        read = asyncio.Semaphore(0)

        async def write(step: worker.DecodeStep) -> None:
            written.append(step)
            read.release()

        async def incoming() -> AsyncIterator[worker.DecodeCall]:
            for number in (1, 2):
                yield worker.DecodeCall(call=number, start=request(number, 200))
            await asyncio.sleep(10.0)
            assert len(written) == MOST_UNREAD and max(computed.values()) <= MOST_UNREAD + 3
            while +role.held:
                await read.acquire()
                yield worker.DecodeCall(steps_read=1)

        async def counted(request: worker.DecodeRequest) -> AsyncIterator[worker.DecodeEvent]:
            async with aclosing(role.decode(request)) as events:
                async for event in events:
                    computed[request.sequence.request_id] += 1
                    yield event

        role, computed = Role(lambda: 0.01), Counter[str]()
        await DecodeServer(counted, write, most_calls=9).serve(incoming(), asyncio.Event())
        for number in (1, 2):
            events = [e for step in written for e in step.events if e.call == number]
            told = [token.position for event in events for token in event.tokens.tokens]
            assert told == list(range(200)) and events[-1].HasField("end")

    run_virtual(play())


def test_too_many_calls_are_refused() -> None:
    async def play(wire: Wire, client: DecodeClient) -> None:
        streams = [client.start(request(number, 3)) for number in range(1, 103)]
        ends = [read(stream, n, lambda: 0.0) for n, stream in enumerate(streams, 1)]
        ways = Counter(how for how, _ in await asyncio.gather(*ends))
        assert ways == {"ok": 100, "RESOURCE_EXHAUSTED": 2}

    scene(play)


def test_a_worker_that_leaves_ends_the_stream_after_its_calls() -> None:
    async def play(wire: Wire, client: DecodeClient) -> None:
        stream = client.start(request(1, 50))
        await asyncio.sleep(0.1)
        wire.leaving.set()
        assert await read(stream, 1, lambda: 0.0) == ("ok", 50)
        await asyncio.sleep(0.1)
        assert wire.streams[0].serving.done()
        wire.leaving.clear()
        assert await read(client.start(request(2, 5)), 2, lambda: 0.0) == ("ok", 5)
        assert len(wire.streams) == 2

    scene(play)


def test_closing_the_client_fails_what_is_open() -> None:
    async def play(wire: Wire, client: DecodeClient) -> None:
        reading = asyncio.create_task(read(client.start(request(1, 500)), 1, lambda: 0.0))
        await asyncio.sleep(0.1)
        await client.close()
        assert (await reading)[0] == "UNAVAILABLE"
        await asyncio.sleep(0.1)

    scene(play)
