"""The Worker service on a socket: what only a real connection shows."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest

from tests.handoff import both, prefill
from tests.sim.house import expected, request
from workers.config import TransportConfig
from workers.core.clock import SystemClock
from workers.core.errors import KvasirError
from workers.core.request import Request
from workers.core.sim_runner import SimRunner
from workers.core.span import whole
from workers.core.waits import inline
from workers.engine import Engine
from workers.peer_client import GrpcPeers
from workers.server import start_server
from workers.transfer.port import LocalPort, Ports
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire import worker_pb2_grpc as worker_grpc
from workers.wire.codec import request_to_wire
from workers.wire.decode_client import DecodeClient, DecodeFailed, DecodeStream
from workers.wire.tls import TlsFiles, client_tls, open_channel
from workers.worker import Worker

PATIENCE_S = 1.0


@asynccontextmanager
async def served(
    tls: TlsFiles | None = None,
) -> AsyncIterator[tuple[Worker, worker_grpc.WorkerStub]]:
    """A worker of both roles on simulated pages; blocks go inline. `tls`: its own, and ours."""
    runner = SimRunner(num_blocks=1024, block_size=16)
    peers = GrpcPeers(SystemClock(), tls=client_tls(tls))
    ports = Ports(((LocalPort(runner.pages, whole(1), [], inline),),), 1, runner.pages.block_bytes)
    made = Worker(
        Engine(runner, block_size=16, step_tokens=4096, max_seqs=8),
        common.ReplicaRef(id="w", incarnation="1"),
        common.ROLE_PREFILL,
        peer_at=peers.at,
        ports=ports,
        transports=[],
        config=TransportConfig(backend="inline", chunk_timeout_s=PATIENCE_S),
        ttl_s=10.0,
        offload=inline,
    )
    server, port = await start_server(made, "127.0.0.1", 0, tls)
    made.me.address = f"127.0.0.1:{port}"
    running = asyncio.create_task(made.run())
    try:
        async with open_channel(made.me.address, (), client_tls(tls)) as channel:
            yield made, worker_grpc.WorkerStub(channel)
    finally:
        running.cancel()
        await asyncio.wait({running})
        await server.stop(0)
        await peers.close()
        await made.close()


async def test_the_whole_way_over_a_socket() -> None:
    async with served() as (made, stub):
        prompt = list(range(100))
        decodes = DecodeClient(stub.Decode)
        _, tokens = await both(stub.Prefill, decodes.start, request("r", prompt, 9))
        assert tokens == expected(prompt, 9)
        await decodes.close()
        assert made.num_busy == 0
        made.check_integrity()


async def test_errors_are_statuses() -> None:
    async with served() as (_, stub):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await prefill(stub.Prefill, request("r", [5000], 9))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        redeem = worker.Redeem(ticket_id="none", epoch=1)
        call = stub.FetchKV(iter([worker.FetchRequest(redeem=redeem)]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "never here" in (caught.value.details() or "")
        await stub.Drain(worker.DrainRequest(budget_s=0.1))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await prefill(stub.Prefill, request("r", [1], 9))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_decode_call_that_fails_is_not_its_neighbours_affair() -> None:
    async with served() as (made, stub):
        decodes = DecodeClient(stub.Decode)

        def start(what: Request, ticket: common.Ticket | None = None) -> DecodeStream:
            spec = request_to_wire(what)
            return decodes.start(worker.DecodeRequest(sequence=spec, ticket=ticket, epoch=1))

        prompt = list(range(100))
        neighbour = start(request("long", prompt, 400))
        assert (event := await neighbour.read()) and event.HasField("admitted")
        foreign = common.Ticket(id="t", kv_abi="another")
        for call, status in (
            (start(request("r", [5000], 9)), "INVALID_ARGUMENT"),
            (start(request("r", [1], 9), foreign), "FAILED_PRECONDITION"),
        ):
            with pytest.raises(DecodeFailed) as caught:
                await call.read()
            assert caught.value.status == status and call.ended
        left = start(request("left", prompt, 400))
        assert await left.read()
        left.cancel()
        tokens = [t.id async for event in neighbour for t in event.tokens.tokens]
        assert tokens == expected(prompt, 400)
        async with asyncio.timeout(10):
            while made.num_busy:
                await asyncio.sleep(0.01)
        made.check_integrity()
        assert not decodes.num_open
        await decodes.close()


async def test_a_decode_stream_that_is_gone_leaves_nothing_on_the_worker() -> None:
    async with served() as (made, stub):
        decodes = DecodeClient(stub.Decode)
        calls = [
            decodes.start(worker.DecodeRequest(sequence=request_to_wire(request(f"{i}", [i], 400))))
            for i in range(3)
        ]
        for call in calls:
            assert await call.read()
        assert made.num_busy == 3
        await decodes.close()
        for call in calls:
            with pytest.raises(DecodeFailed, match="closed"):
                while await call.read():
                    pass
        async with asyncio.timeout(10):
            while made.num_busy:
                await asyncio.sleep(0.01)
        made.check_integrity()


async def test_a_taken_port_is_an_error() -> None:
    async with served() as (made, _):
        port = int(made.me.address.rpartition(":")[2])
        with pytest.raises(OSError, match=str(port)):
            await start_server(made, "127.0.0.1", port)


FROZEN = textwrap.dedent(
    """
    import sys, time, grpc
    from workers.wire import worker_pb2 as w, worker_pb2_grpc as wg

    options = [("grpc.max_receive_message_length", 64 << 20)]
    stub = wg.WorkerStub(grpc.insecure_channel(sys.argv[1], options))
    call = stub.FetchKV(iter([w.FetchRequest()]))
    print(next(call).WhichOneof("message"), flush=True)
    time.sleep(100)
    """
)


class EndlessFetch:
    """The tickets as the service sees them, with more to send than any window takes."""

    patience_s = PATIENCE_S
    open = 0

    async def fetch(self, requests: object) -> AsyncIterator[worker.FetchResponse]:
        self.open += 1
        try:
            while True:
                data = worker.InlineBlocks(data=bytes(1 << 20))
                yield worker.FetchResponse(inline=data)
        finally:
            self.open -= 1


async def test_a_decode_worker_that_does_not_read_cannot_hold_a_fetch() -> None:
    """Its socket is full, so the fetch waits in a write, where it sees neither a release nor the
    end of its lease: that wait has a deadline too."""
    role = EndlessFetch()
    parts: Any = SimpleNamespace(desk=role)
    server, port = await start_server(parts, "127.0.0.1", 0)
    peer = subprocess.Popen(
        [sys.executable, "-c", FROZEN, f"127.0.0.1:{port}"], stdout=subprocess.PIPE
    )
    assert peer.stdout
    try:
        assert (await asyncio.to_thread(peer.stdout.readline)).strip() == b"inline"
        assert role.open == 1
        peer.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(20):
            while role.open:
                await asyncio.sleep(0.05)
    finally:
        peer.kill()
        peer.wait()
        peer.stdout.close()
        await server.stop(0)


async def test_watch_ends_when_the_worker_leaves() -> None:
    async with served() as (made, stub):
        watch = stub.Watch(worker.WatchRequest(interval_s=60))
        assert (await watch.read()).replica.id == "w"
        made.leaving.set()
        assert await watch.read() is grpc.aio.EOF


def test_every_error_has_a_grpc_status() -> None:
    def leaves(kind: type[KvasirError]) -> set[type[KvasirError]]:
        return {kind} | {leaf for sub in kind.__subclasses__() for leaf in leaves(sub)}

    for kind in leaves(KvasirError):
        assert grpc.StatusCode[kind.code.name], kind
