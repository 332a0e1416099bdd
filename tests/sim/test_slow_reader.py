"""The engine runs ahead of whoever reads a stream slowly: nothing of the stream may be lost."""

from __future__ import annotations

import asyncio

from tests import handoff
from tests.sim.house import House, expected, request
from workers.core.clock import run_virtual
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.codec import request_to_wire


def test_only_the_last_token_carries_the_finish_reason() -> None:
    async def scene() -> None:
        async with House().open() as house:
            p, d = house.start("p", common.ROLE_PREFILL), house.start("d", common.ROLE_DECODE)
            prompt = list(range(10))
            what = request("r", prompt, 8)
            ticket, first = await handoff.prefill(p.prefill.prefill, what)
            spec = request_to_wire(what)
            spec.token_ids.append(first.token.id)
            message = worker.DecodeRequest(sequence=spec, ticket=ticket, epoch=1)
            tokens: list[worker.Tokens] = []
            async for event in d.decode.decode(message):
                await asyncio.sleep(0.002)  # two steps of the engine
                if event.WhichOneof("event") == "tokens":
                    tokens.append(event.tokens)
            ids = [token.id for part in tokens for token in part.tokens]
            assert [first.token.id, *ids] == expected(prompt, 8)
            assert 2 <= len(tokens) <= 5  # of what came together, one event
            reasons = [part.finish_reason for part in tokens]
            assert reasons[-1] == common.FINISH_REASON_LENGTH
            assert not any(reasons[:-1])
            house.check_idle()

    run_virtual(scene())
