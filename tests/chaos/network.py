"""gRPC channels and servers without sockets: what the real clients and the real servicer say goes
over this as bytes, and every message is a place where something can go wrong.

Messages of one call stay in order; calls overtake each other. A message to a host behind a cut
waits for the cut's end, as TCP does; who waits longer than keepalive allows is told UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from tests.chaos.hosts import Host
from workers.wire import worker_pb2 as worker

ROUTER_KEEPALIVE_S = 15.0  # as in router/worker_client.py
PEER_KEEPALIVE_S = 4.0  # as in workers/peer_client.py
TICK = 1e-7


@dataclass(slots=True)
class Weather:
    """What the network does of itself. Seconds."""

    latency_s: tuple[float, float] = (0.0002, 0.001)
    duplicate: float = 0.0  # share of calls that arrive twice
    window: int = 1 << 16  # bytes that may lie unread in one direction of a call


@dataclass(frozen=True, slots=True)
class Hop:
    """One message on its way. `step` is e.g. "Prefill>", "Prefill<opened", "FetchKV>ready"."""

    step: str
    src: Host
    dst: Host


class Network:
    """`on_hop` hears of each message as it is sent, and may break things before it arrives."""

    def __init__(self, rng: random.Random, weather: Weather) -> None:
        self.weather = weather
        self.on_hop: Callable[[Hop], None] = lambda hop: None
        self.on_write: Callable[[Any], None] = lambda message: None  # of servers; it may change it
        self.calls: dict[Call, None] = {}
        self.crashes: list[str] = []  # errors of handlers that are no KvasirError
        self.hops: Counter[str] = Counter()
        self._rng = rng
        self._servers: dict[str, tuple[Host, Any]] = {}
        self._cuts: dict[frozenset[str], float] = {}
        self._slow: dict[str, tuple[float, float]] = {}

    # -- who is there --------------------------------------------------------------------------

    def listen(self, host: Host, servicer: Any) -> None:
        self._servers[host.name] = (host, servicer)

    def close(self, host: Host) -> None:
        """It takes no calls any more; those that run go on."""
        if self._servers.get(host.name, (None, None))[0] is host:
            del self._servers[host.name]

    def server(self, name: str) -> tuple[Host, Any] | None:
        return self._servers.get(name)

    def serving(self, host: Host) -> list[Call]:
        return [call for call in self.calls if call.dst is host and call.server is not None]

    async def cancel_served(self, host: Host) -> None:
        """What a server does whose grace is over."""
        running = [call.server for call in self.serving(host) if call.server is not None]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    # -- faults ----------------------------------------------------------------------------------

    def cut(self, one: str, other: str, seconds: float) -> None:
        """Nothing passes between them for so long. Who waits for an answer there may give up."""
        key, until = frozenset((one, other)), _now() + seconds
        self._cuts[key] = max(until, self._cuts.get(key, 0.0))
        for call in list(self.calls):
            if {call.src.name, call.dst.name} == key:
                self._watch_over(call)

    def slow(self, name: str, extra_s: float, seconds: float) -> None:
        """Each message from or to it takes up to so much longer."""
        self._slow[name] = (_now() + seconds, extra_s)

    def heal(self) -> None:
        self._cuts.clear()
        self._slow.clear()
        self.weather = Weather(window=self.weather.window)

    def silent(self, host: Host) -> None:
        """It was frozen: who calls it may give up."""
        for call in list(self.calls):
            if call.dst is host:
                self._watch_over(call)

    def died(self, host: Host) -> None:
        """Its kernel closes every connection: the other ends hear of it."""
        self.close(host)
        for call in list(self.calls):
            if call.dst is host:
                reset = grpc.StatusCode.UNAVAILABLE, "connection reset by peer"
                self._carry(call.src, host, call, 1, call.fail, reset)
            elif call.src is host:
                del self.calls[call]
                self._carry(call.dst, host, call, 0, call.end_server)

    def cut_until(self, one: str, other: str) -> float:
        return self._cuts.get(frozenset((one, other)), 0.0)

    def reachable(self, one: Host, other: Host) -> bool:
        return not (one.frozen or other.frozen or self.cut_until(one.name, other.name) > _now())

    # -- messages --------------------------------------------------------------------------------

    def send(
        self,
        call: Call,
        way: int,
        kinds: Sequence[str],
        deliver: Callable[..., None],
        *args: Any,
    ) -> None:
        """way 0: client to server; 1: back. `kinds`: what is said, in one message."""
        src, dst = (call.src, call.dst) if way == 0 else (call.dst, call.src)
        for kind in kinds:
            step = f"{call.method}{'><'[way]}{kind}"
            self.hops[step] += 1
            self.on_hop(Hop(step, src, dst))
        if not src.dead:
            self._carry(dst, src, call, way, deliver, *args)

    def delay_s(self, one: str, other: str) -> float:
        least, most = self.weather.latency_s
        delay = self._rng.uniform(least, most)
        for name in (one, other):
            until, extra = self._slow.get(name, (0.0, 0.0))
            if until > _now():
                delay += self._rng.uniform(0.0, extra)
        return delay + max(0.0, self.cut_until(one, other) - _now())

    def twice(self) -> bool:
        return self.weather.duplicate > 0 and self._rng.random() < self.weather.duplicate

    def later_s(self) -> float:
        return self._rng.choice((0.0, 0.01, 0.3, 3.0)) * self._rng.random()

    def _carry(
        self, dst: Host, src: Host, call: Call, way: int, deliver: Callable[..., None], *args: Any
    ) -> None:
        when = max(_now() + self.delay_s(src.name, dst.name), call.last[way] + TICK)
        call.last[way] = when
        asyncio.get_running_loop().call_at(when, deliver, *args, context=dst.context)

    def _watch_over(self, call: Call) -> None:
        keepalive = ROUTER_KEEPALIVE_S if call.src.name == "router" else PEER_KEEPALIVE_S

        def check() -> None:
            if call in self.calls and not self.reachable(call.src, call.dst):
                call.fail((grpc.StatusCode.UNAVAILABLE, "keepalive watchdog timeout"))

        asyncio.get_running_loop().call_later(keepalive, check, context=call.src.context)


@dataclass(eq=False, slots=True)
class Call:
    """One RPC, both ends of it. A client sees it as a grpc.aio call."""

    network: Network
    method: str
    src: Host
    dst: Host
    parse: Callable[[bytes], Any]
    last: list[float] = field(default_factory=lambda: [0.0, 0.0])
    # the client's end
    inbox: deque[bytes] = field(default_factory=deque)
    status: tuple[grpc.StatusCode, str] | None = None  # OK: after the inbox
    cancelled: bool = False
    sender: asyncio.Task[None] | None = None
    request_ids: dict[int, str] = field(default_factory=dict)  # under way, by call
    owed: int = 0
    # the server's end
    server: asyncio.Task[None] | None = None
    requests: deque[bytes | None] = field(default_factory=deque)
    unread: int = 0
    _client_news: asyncio.Event = field(default_factory=asyncio.Event)
    _server_news: asyncio.Event = field(default_factory=asyncio.Event)

    # -- client ----------------------------------------------------------------------------------

    async def read(self) -> Any:
        while not self.inbox and self.status is None:
            self._client_news.clear()
            await self._client_news.wait()
        if self.cancelled:
            raise asyncio.CancelledError
        if self.inbox:
            data = self.inbox.popleft()
            self._give_credit(len(data))
            return self.parse(data)
        assert self.status is not None
        if self.status[0] is grpc.StatusCode.OK:
            return grpc.aio.EOF
        raise grpc.aio.AioRpcError(
            self.status[0], grpc.aio.Metadata(), grpc.aio.Metadata(), details=self.status[1]
        )

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._messages()

    async def _messages(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    def cancel(self) -> bool:
        if self.status is not None:
            return False
        self.cancelled = True
        self.network._carry(self.dst, self.src, self, 0, self.end_server)
        self.fail((grpc.StatusCode.CANCELLED, "cancelled"))
        return True

    def fail(self, status: tuple[grpc.StatusCode, str]) -> None:
        """It ends at the client's end."""
        if self.status is None:
            self.status = status
            self._client_news.set()
            self.network.calls.pop(self, None)
            if self.sender is not None:
                self.sender.cancel()
            if status[0] is grpc.StatusCode.UNAVAILABLE and not self.dst.dead:
                self.network._carry(self.dst, self.src, self, 0, self.end_server)

    def _give_credit(self, num_bytes: int) -> None:
        self.owed += num_bytes
        if self.owed > self.network.weather.window // 2:
            self.network._carry(self.dst, self.src, self, 0, self._credit, self.owed)
            self.owed = 0

    def _take(self, data: bytes, ended: Sequence[int]) -> None:
        if self.status is None:
            for number in ended:
                self.request_ids.pop(number, None)
            self.inbox.append(data)
            self._client_news.set()

    # -- server ----------------------------------------------------------------------------------

    def end_server(self) -> None:
        if self.server is not None:
            self.server.cancel()

    async def write(self, message: Any) -> None:
        """Waits while the client leaves too much unread."""
        self.network.on_write(message)
        data = message.SerializeToString()
        self.unread += len(data)
        self.network.send(self, 1, kinds_of(message), self._take, data, ended_in(message))
        while self.unread > self.network.weather.window:
            self._server_news.clear()
            await self._server_news.wait()

    def _credit(self, num_bytes: int) -> None:
        self.unread -= num_bytes
        self._server_news.set()

    def take_request(self, data: bytes | None) -> None:
        self.requests.append(data)
        self._server_news.set()

    async def incoming(self, parse: Callable[[bytes], Any]) -> AsyncIterator[Any]:
        while True:
            while not self.requests:
                self._server_news.clear()
                await self._server_news.wait()
            data = self.requests.popleft()
            if data is None:
                return
            yield parse(data)


def kind_of(message: Any) -> str:
    groups = message.DESCRIPTOR.oneofs_by_name
    for group in ("message", "event"):
        if group in groups:
            return message.WhichOneof(group) or ""
    return ""


def kinds_of(message: Any) -> list[str]:
    """An End says how its call ended: ok, or a code."""
    if not isinstance(message, worker.DecodeStep):
        return [kind_of(message)]
    return [
        (event.end.code.lower() or "ok") if event.HasField("end") else kind_of(event)
        for event in message.events
    ]


def ended_in(message: Any) -> list[int]:
    """Calls of a Decode stream whose last event this is."""
    if not isinstance(message, worker.DecodeStep):
        return []
    return [event.call for event in message.events if event.HasField("end")]


def _now() -> float:
    return asyncio.get_running_loop().time()
