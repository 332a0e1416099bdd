"""The worker's end of a Decode stream by itself, in virtual time: a wire that takes nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

from tests.sim.test_decode_stream import Role, request
from workers.core.clock import run_virtual
from workers.decode_server import MOST_EVENTS, DecodeServer
from workers.wire import worker_pb2 as worker


def test_what_cannot_be_written_does_not_pile_up() -> None:
    async def run() -> None:
        blocked, told = asyncio.Event(), Counter[int]()

        async def write(step: worker.DecodeStep) -> None:
            await blocked.wait()
            told.update(event.call for event in step.events)

        async def incoming() -> AsyncIterator[worker.DecodeCall]:
            for number in range(1, 11):
                yield worker.DecodeCall(call=number, start=request(number, 2000))
            while True:
                await asyncio.sleep(0.001)
                yield worker.DecodeCall(steps_read=1)

        server = DecodeServer(Role(lambda: 0.001).decode, write, most_calls=100)
        serving = asyncio.create_task(server.serve(incoming(), asyncio.Event()))
        await asyncio.sleep(10.0)
        assert len(server._outbox) < 2 * MOST_EVENTS
        blocked.set()
        await asyncio.sleep(100.0)
        assert not server.busy and set(told.values()) == {2002}, "admitted, tokens, end"
        serving.cancel()
        await asyncio.wait([serving])

    run_virtual(run())
