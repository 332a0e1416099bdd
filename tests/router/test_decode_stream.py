"""One Decode stream for each worker: shared by its calls, and opened again after it broke."""

from __future__ import annotations

import asyncio

import pytest

from router.worker_client import WorkerClient, WorkerFailed, WorkerFull
from tests.router.fleet import house, request, until
from tests.router.test_dispatch import check_output
from workers.core.errors import InvalidRequest, TicketError
from workers.wire import worker_pb2 as worker

HELD = 15


async def test_requests_share_a_stream_and_a_restarted_worker_gets_a_new_one() -> None:
    async with house("prefill-1", "decode-1") as inside:
        fake = inside.fleet["decode-1"]
        fake.hold_at = HELD
        asked = [request(max_tokens=20) for _ in range(5)]
        answers = [asyncio.create_task(inside.tokens(one)) for one in asked]
        await until(lambda: len(fake.live) == 5)
        assert fake.decode_streams == 1
        await fake.kill()
        fake.hold_at = None
        await fake.start()
        for one, answer in zip(asked, await asyncio.gather(*answers), strict=True):
            check_output(one, answer)
        assert fake.decode_streams == 1
        await inside.fleet.quiet()


async def test_a_stream_that_broke_leaves_no_task() -> None:
    async with house("aggregated-1") as inside:
        fake = inside.fleet["aggregated-1"]
        await inside.tokens(request())
        await inside.fleet.quiet()
        seen = asyncio.all_tasks()  # kept: one that waits for nothing is not to be collected
        before = len(seen)
        for _ in range(3):
            await fake.kill()
            await fake.start()
            await inside.tokens(request())
            seen |= asyncio.all_tasks()
        await until(lambda: sum(not task.done() for task in seen) <= before)


async def test_an_error_keeps_its_meaning_and_ends_no_other_call() -> None:
    async with house("aggregated-1") as inside:
        fake = inside.fleet["aggregated-1"]
        fake.hold_at = HELD
        client = WorkerClient("a", fake.record.address)
        staying = client.decode(request())
        await until(lambda: fake.active == 1)
        for code, kind in (
            ("INVALID_ARGUMENT", InvalidRequest),
            ("FAILED_PRECONDITION", TicketError),
            ("RESOURCE_EXHAUSTED", WorkerFull),
            ("UNAVAILABLE", WorkerFailed),
            ("INTERNAL", WorkerFailed),
            ("CANCELLED", WorkerFailed),
        ):
            fake.script.append(code)
            with pytest.raises(kind, match=f"scripted {code}"):
                await client.decode(request()).read()
        fake.hold_at = None
        tokens: list[worker.DecodeEvent] = []
        while (event := await staying.read()) is not None:
            tokens.append(event)
        assert tokens[-1].tokens.finish_reason and staying.ended
        await client.close()
        with pytest.raises(WorkerFailed, match="closed"):
            await client.decode(request()).read()


async def test_abort_is_seen_at_once_and_frees_the_worker() -> None:
    async with house("aggregated-1") as inside:
        fake = inside.fleet["aggregated-1"]
        fake.hold_at = HELD
        client = WorkerClient("a", fake.record.address)
        call = client.decode(request())
        reading = asyncio.ensure_future(_to_the_end(call))
        await until(lambda: fake.active == 1)
        call.abort("somebody said so")
        with pytest.raises(WorkerFailed, match="somebody said so"):
            await reading
        await until(lambda: fake.active == 0)
        assert fake.decode_streams == 1
        await client.close()
        await until(lambda: fake.decode_streams == 0)


async def _to_the_end(call) -> None:
    while await call.read() is not None:
        pass
