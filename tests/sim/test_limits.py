"""Sizes that the router sets on a running worker, in virtual time."""

from __future__ import annotations

import asyncio

from tests.sim.house import House, request
from workers.core.clock import run_virtual
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker


def test_limits_hold_from_the_next_step_and_disturb_nobody_who_runs() -> None:
    async def scene() -> None:
        async with House(blocks=256).open() as house:
            made = house.start("a", common.ROLE_AGGREGATED)
            engine = made.engine
            seqs = [engine.add(request(f"r{n}", [n + 1] * 6, 30)) for n in range(12)]
            batches: list[tuple[int, int]] = []
            execute = engine.runner.execute

            def watched(batch):  # type: ignore[no-untyped-def]
                decodes = sum(chunk.is_decode for chunk in batch.chunks)
                batches.append((len(batch.chunks), batch.num_tokens - decodes))
                return execute(batch)

            engine.runner.execute = watched
            while len(engine.scheduler.running) < 8:
                await asyncio.sleep(0.001)
            assert made.set_limits(3, 5) == worker.SetLimitsResponse(max_seqs=3, step_tokens=5)
            batches.clear()
            await asyncio.sleep(0.05)
            assert batches and all(count == 8 for count, _ in batches[1:]), "all of them go on"
            while not all(seq.status.name == "FINISHED" for seq in seqs[:8]):
                await asyncio.sleep(0.001)
            batches.clear()
            while engine.has_work:
                await asyncio.sleep(0.001)
            assert batches and all(count <= 3 and chunk <= 5 for count, chunk in batches)
            assert all(seq.num_output == 30 for seq in seqs) and not engine.scheduler.preemptions
            house.check_idle()

    run_virtual(scene())


def test_limits_never_exceed_what_it_was_started_with_and_are_reported() -> None:
    async def scene() -> None:
        async with House().open() as house:
            made = house.start("a", common.ROLE_DECODE)

            async def reported() -> tuple[int, int, int, int]:
                async for load in made.watch(0.1):
                    return load.seqs_limit, load.step_tokens, load.max_seqs, load.most_step_tokens
                raise AssertionError("no report")

            assert await reported() == (8, 16, 8, 16)
            made.set_limits(2, 4)
            assert await reported() == (2, 4, 8, 16)
            made.set_limits(100, 1000)
            assert await reported() == (8, 16, 8, 16)
            made.set_limits(2, 4)
            made.set_limits(0, 0)
            assert await reported() == (8, 16, 8, 16)

    run_virtual(scene())
