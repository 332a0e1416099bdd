"""The two ends of the simulated network: a channel for the real stubs, a server for the real
servicer."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio

from tests.chaos.hosts import Host
from tests.chaos.network import Call, Network, kind_of
from workers.wire import worker_pb2 as worker

STREAMS_IN = {
    "FetchKV": worker.FetchRequest.FromString,
    "Decode": worker.DecodeCall.FromString,
}


class SimChannel:
    """What grpc.aio.insecure_channel(address) gives, as far as our stubs use it."""

    def __init__(self, network: Network, src: Host, address: str) -> None:
        self._network = network
        self._src = src
        self._address = address
        self._calls: set[Call] = set()
        self._closed = False

    def unary_unary(
        self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any
    ) -> Callable[..., Any]:
        async def ask(message: Any, timeout: float | None = None) -> Any:
            call = self._open(path, response_deserializer, message, request_serializer)
            try:
                async with asyncio.timeout(timeout):
                    answer = await call.read()
                call.fail((grpc.StatusCode.OK, ""))
                return answer
            except TimeoutError:
                call.cancel()
                raise grpc.aio.AioRpcError(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    grpc.aio.Metadata(),
                    grpc.aio.Metadata(),
                    details="Deadline Exceeded",
                ) from None
            finally:
                call.cancel()

        return ask

    def unary_stream(
        self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any
    ) -> Callable[..., Call]:
        def start(message: Any) -> Call:
            return self._open(path, response_deserializer, message, request_serializer)

        return start

    def stream_stream(
        self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any
    ) -> Callable[..., Call]:
        def start(requests: AsyncIterator[Any]) -> Call:
            call = self._open(path, response_deserializer)
            call.sender = self._src.spawn(self._send_all(call, requests, request_serializer))
            return call

        return start

    async def close(self, grace: float | None = None) -> None:
        self._closed = True
        for call in self._calls:
            call.cancel()

    async def _send_all(self, call: Call, requests: AsyncIterator[Any], pack: Any) -> None:
        async for message in requests:
            data = pack(message)
            if isinstance(message, worker.DecodeCall):
                self._note_decode(call, message, data)
            self._network.send(call, 0, [kind_of(message)], call.take_request, data)
        self._network.send(call, 0, ["end"], call.take_request, None)

    def _note_decode(self, call: Call, message: worker.DecodeCall, data: bytes) -> None:
        if message.HasField("cancel"):
            call.request_ids.pop(message.call, None)
        if not message.HasField("start"):
            return
        call.request_ids[message.call] = message.start.sequence.request_id
        if self._network.twice():
            servicer = (self._network.server(self._address) or (None, None))[1]
            self._haunt(call, servicer, None, [data])

    def _open(self, path: str, parse: Any, message: Any = None, pack: Any = None) -> Call:
        if self._closed:
            raise grpc.aio.UsageError("Channel is closed.")
        network, method = self._network, path.rpartition("/")[2]
        found = network.server(self._address)
        dst, servicer = found if found is not None else (Host(self._address), None)
        call = Call(network, method, self._src, dst, parse)
        call.request_ids = _request_ids(message)
        network.calls[call] = None
        self._calls = {old for old in self._calls if old.status is None} | {call}
        data = pack(message) if pack is not None else None
        network.send(call, 0, [""], _arrive, call, servicer, data)
        if method != "Watch" and data is not None and network.twice():
            self._haunt(call, servicer, data)
        if not network.reachable(self._src, dst):
            network._watch_over(call)
        return call

    def _haunt(
        self, call: Call, servicer: Any, data: bytes | None, requests: Sequence[bytes] = ()
    ) -> None:
        """The same call once more, a little later; nobody reads what comes back."""
        ghost = Call(self._network, call.method, self._src, call.dst, call.parse)
        ghost.requests.extend(requests)
        if not requests:
            ghost.request_ids = dict(call.request_ids)
        loop = asyncio.get_running_loop()
        begin = self._network.later_s()
        self._network.calls[ghost] = None
        loop.call_later(begin, _arrive, ghost, servicer, data, context=call.dst.context)
        end = begin + self._network.later_s()
        loop.call_later(end, ghost.cancel, context=self._src.context)


class Aborted(Exception):
    """context.abort() was called."""


class Context:
    """What a handler sees of its call."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.status: tuple[grpc.StatusCode, str] = (grpc.StatusCode.OK, "")

    async def write(self, message: Any) -> None:
        await self._call.write(message)

    async def abort(self, code: grpc.StatusCode, details: str = "", *_: Any) -> NoReturn:
        self.status = (code, details)
        raise Aborted(details)


def _arrive(call: Call, servicer: Any, data: bytes | None) -> None:
    """Runs on the server's host."""
    if call.dst.dead or servicer is None or call.network.server(call.dst.name) is None:
        refused = grpc.StatusCode.UNAVAILABLE, "connection refused"
        call.network._carry(call.src, call.dst, call, 1, call.fail, refused)
    else:
        call.server = call.dst.spawn(_serve(call, servicer, data), f"{call.dst} {call.method}")


async def _serve(call: Call, servicer: Any, data: bytes | None) -> None:
    context = Context(call)
    handler = getattr(servicer, call.method)
    if call.method in STREAMS_IN:
        result = handler(call.incoming(STREAMS_IN[call.method]), context)
    else:
        result = handler(_REQUESTS[call.method](data), context)
    try:
        if inspect.isasyncgen(result):
            async for message in result:
                await call.write(message)
        else:
            answer = await result
            if answer is not None:
                await call.write(answer)
        status = context.status
    except Aborted:
        status = context.status
    except asyncio.CancelledError:
        status = grpc.StatusCode.CANCELLED, "the server cancelled it"
    except Exception as error:
        call.network.crashes.append(f"{call.dst} {call.method}: {error!r}")
        status = grpc.StatusCode.UNKNOWN, repr(error)
    call.network.send(call, 1, [status[0].name.lower()], call.fail, status)


def _request_ids(message: Any) -> dict[int, str]:
    if isinstance(message, worker.PrefillRequest):
        return {0: message.sequence.request_id}
    return {}


_REQUESTS: dict[str, Callable[[bytes], Any]] = {
    method.name: getattr(worker, method.input_type.name).FromString
    for method in worker.DESCRIPTOR.services_by_name["Worker"].methods
}
