"""Routers and workers among themselves: both sides show a certificate, and who has none is out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from router.worker_client import CHANNEL_OPTIONS, WorkerClient, WorkerFailed
from tests.certificates import Authority
from tests.handoff import both
from tests.sim.house import expected, request
from tests.workers.test_server import served
from workers.wire import worker_pb2 as worker
from workers.wire import worker_pb2_grpc as worker_grpc
from workers.wire.decode_client import DecodeClient
from workers.wire.tls import ClientTls, InternalTls, TlsFiles, client_tls, open_channel

NAME = "kvasir"


def internal(authority: Authority, who: str, *names: str) -> InternalTls:
    cert, key = authority.sign(who, *names or (NAME,))
    return InternalTls(cert=cert, key=key, ca=authority.ca)


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@pytest.fixture
def others(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "others")


async def test_a_request_is_handed_over_with_tls_on_every_connection(ours: Authority) -> None:
    async with served(internal(ours, "worker")) as (made, stub):
        prompt = list(range(100))
        decodes = DecodeClient(stub.Decode)
        _, tokens = await both(stub.Prefill, decodes.start, request("r", prompt, 9))
        assert tokens == expected(prompt, 9)
        await decodes.close()
        made.check_integrity()


def no_tls(ours: Authority, others: Authority) -> TlsFiles | None:
    return None


def no_certificate_of_ours(ours: Authority, others: Authority) -> TlsFiles:
    return internal(others, "stranger").model_copy(update={"ca": ours.ca})


def who_trusts_others(ours: Authority, others: Authority) -> TlsFiles:
    return internal(ours, "router").model_copy(update={"ca": others.ca})


def who_looks_for_another_name(ours: Authority, others: Authority) -> TlsFiles:
    return internal(ours, "router").model_copy(update={"name": "another"})


@pytest.mark.parametrize(
    "files", [no_tls, no_certificate_of_ours, who_trusts_others, who_looks_for_another_name]
)
async def test_nobody_else_is_spoken_to(
    ours: Authority,
    others: Authority,
    files: Callable[[Authority, Authority], TlsFiles | None],
) -> None:
    async with served(internal(ours, "worker")) as (made, _):
        tls = client_tls(files(ours, others))
        async with open_channel(made.me.address, (), tls) as channel:
            stub = worker_grpc.WorkerStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Tickets(worker.TicketsRequest(), timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_certificates_that_are_replaced_on_both_sides_need_no_restart(
    ours: Authority, tmp_path: Path
) -> None:
    files = internal(ours, "both")
    async with served(files) as (made, _), cut_line(made.me.address) as line:
        client = WorkerClient("w", line.address, tls=ClientTls(files))
        first = client.watch(0.05)
        assert await first.read() is not None
        newer = Authority(ours.folder)  # another authority, in the same files
        internal(newer, "both")
        line.cut()
        with pytest.raises(WorkerFailed):
            while await first.read() is not None:
                pass
        second = client.watch(0.05)
        assert await second.read() is not None
        assert await client.tickets() is not None
        second.cancel()
        await client.close()


class Line:
    """A way to a server whose connections can be cut."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._writers: list[asyncio.StreamWriter] = []
        self.frozen = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        onward, there = await asyncio.open_connection(self._host, int(self._port))
        self._writers += [writer, there]
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(self._pump(reader, there), self._pump(onward, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                if not self.frozen.is_set():
                    writer.write(data)
        except OSError:
            pass
        if not self.frozen.is_set():
            writer.close()


@asynccontextmanager
async def cut_line(address: str) -> AsyncIterator[Line]:
    line = Line(address)
    line.server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    try:
        yield line
    finally:
        line.server.close()
        line.cut()
        for task in line.tasks:
            task.cancel()
        await asyncio.gather(*line.tasks, return_exceptions=True)


@pytest.mark.slow
async def test_a_peer_that_vanishes_without_a_word_holds_nothing_for_long() -> None:
    """Its host lost power: connections stay open, and nothing comes over them any more."""
    watching: set[object] = set()
    async with (
        served() as (made, _),
        cut_line(made.me.address) as line,
        open_channel(line.address, CHANNEL_OPTIONS, None) as channel,
    ):
        watch = made.watch

        async def counted(interval_s: float) -> AsyncIterator[worker.LoadReport]:
            me = object()
            watching.add(me)
            try:
                async for report in watch(interval_s):
                    yield report
            finally:
                watching.discard(me)

        made.watch = counted  # type: ignore[method-assign]
        call = worker_grpc.WorkerStub(channel).Watch(worker.WatchRequest(interval_s=0.05))
        assert await call.read() is not grpc.aio.EOF
        assert len(watching) == 1
        line.frozen.set()
        async with asyncio.timeout(40):
            while watching:
                await asyncio.sleep(0.1)
            with pytest.raises(grpc.aio.AioRpcError) as caught:  # the other end notices too
                while await call.read() is not grpc.aio.EOF:
                    pass
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
