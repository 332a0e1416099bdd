"""The simulated hosts and network do what they are trusted with."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.chaos.hosts import ChaosLoop, Host
from tests.chaos.network import Network, Weather
from tests.chaos.redis_twin import SimRedis, Store
from tests.chaos.rpc import SimChannel
from workers.wire import worker_pb2 as worker
from workers.wire import worker_pb2_grpc as worker_grpc


class Reports(worker_grpc.WorkerServicer):
    """Watch counts in steps of 0.1 s; `ended` hears how each stream ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[worker.LoadReport]:
        try:
            for i in range(100):
                yield worker.LoadReport(running=i)
                await asyncio.sleep(0.1)
        finally:
            self.ended.append("ended")

    async def Renew(self, request: Any, context: Any) -> worker.RenewResponse:
        if not request.ticket_ids:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nothing to renew")
        return worker.RenewResponse(unknown=request.ticket_ids)


class Stage:
    def __init__(self) -> None:
        self.network = Network(random.Random(1), Weather())
        self.server, self.client = Host("server"), Host("client")
        self.servicer = Reports()
        self.network.listen(self.server, self.servicer)
        channel: Any = SimChannel(self.network, self.client, "server")
        self.stub: Any = worker_grpc.WorkerStub(channel)


def play(scene: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=ChaosLoop) as runner:
        runner.run(scene)


def test_messages_of_a_call_stay_in_order_and_it_ends_well() -> None:
    async def scene() -> None:
        call = Stage().stub.Watch(worker.WatchRequest())
        assert [report.running async for report in call] == list(range(100))

    play(scene())


def test_status_and_deadline_of_a_unary_call() -> None:
    async def scene() -> None:
        stage = Stage()
        answer = await stage.stub.Renew(worker.RenewRequest(ticket_ids=["a"]), timeout=1.0)
        assert list(answer.unknown) == ["a"]
        with pytest.raises(grpc.aio.AioRpcError, match="nothing to renew"):
            await stage.stub.Renew(worker.RenewRequest(), timeout=1.0)
        stage.server.freeze()
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await stage.stub.Renew(worker.RenewRequest(ticket_ids=["a"]), timeout=1.0)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not stage.network.calls

    play(scene())


def test_a_frozen_host_says_nothing_and_its_timers_fire_late() -> None:
    async def scene() -> None:
        stage = Stage()
        loop = asyncio.get_running_loop()
        call = stage.stub.Watch(worker.WatchRequest())
        assert (await call.read()).running == 0
        stage.server.freeze()
        loop.call_later(3.0, stage.server.thaw)
        before = loop.time()
        while (await call.read()).running < 2:
            pass
        assert loop.time() - before > 2.9
        assert (await call.read()).running == 3

    play(scene())


def test_a_killed_host_runs_no_finally_and_its_peers_hear_a_reset() -> None:
    async def scene() -> None:
        stage = Stage()
        call = stage.stub.Watch(worker.WatchRequest())
        await call.read()
        stage.server.kill()
        stage.network.died(stage.server)
        with pytest.raises(grpc.aio.AioRpcError, match="reset"):
            while True:
                await call.read()
        await asyncio.sleep(20)
        assert stage.servicer.ended == []
        with pytest.raises(grpc.aio.AioRpcError, match="refused"):
            await stage.stub.Renew(worker.RenewRequest(), timeout=1.0)
        await stage.server.bury()
        assert stage.servicer.ended == ["ended"]

    play(scene())


def test_who_leaves_a_call_cancels_its_handler_also_behind_a_cut() -> None:
    async def scene() -> None:
        stage = Stage()
        call = stage.stub.Watch(worker.WatchRequest())
        await call.read()
        stage.network.cut("server", "client", 2.0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.read()
        await asyncio.sleep(1.5)
        assert stage.servicer.ended == []
        await asyncio.sleep(1.0)
        assert stage.servicer.ended == ["ended"]

    play(scene())


def test_who_waits_behind_a_cut_is_told_after_a_while() -> None:
    async def scene() -> None:
        stage = Stage()
        call = stage.stub.Watch(worker.WatchRequest())
        stage.network.cut("server", "client", 60.0)
        with pytest.raises(grpc.aio.AioRpcError, match="keepalive"):
            while True:
                await call.read()

    play(scene())


def test_leases_in_redis_run_out_in_virtual_time() -> None:
    async def scene() -> None:
        stage, store = Stage(), Store()
        client = SimRedis(stage.network, stage.client, store)
        await client.set("a", "1", px=2000)
        await client.xadd("s", {"n": 1}, maxlen=10)
        assert await client.mget(["a", "b"]) == [b"1", None]
        assert [key async for key in client.scan_iter(match="*")] == [b"a", b"s"]
        assert await client.xread({"s": b"0-0"}, block=100) == [[b"s", [(b"1-0", {b"n": b"1"})]]]
        await asyncio.sleep(2.1)
        assert await client.mget(["a"]) == [None]

    play(scene())
