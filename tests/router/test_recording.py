"""What leaves the router for a recording: sizes, times and salted hashes; and never too much."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from router import recording
from router.api import Call, Terms
from router.explain.trail import Trail
from router.flight import BlockIds
from router.recording import BATCH_BLOCKS, MOST_REQUESTS, Recording
from router.replica import Replica
from router.sharing.foreign import Load
from tests.router.test_sharing import replica, report
from workers.core.clock import VirtualClock, run_virtual
from workers.core.errors import InvalidRequest
from workers.core.request import Request, SamplingParams
from workers.wire import admin_pb2 as admin
from workers.wire import worker_pb2 as worker

BLOCK = 4
SALT, OTHER_SALT = b"a" * 16, b"b" * 16
Batches = AsyncGenerator[admin.RecordedBatch]


def new() -> Recording:
    """It has met a worker whose blocks have four tokens."""
    made = Recording(VirtualClock())
    made.reported(replica(), report("prefill-0", Load()))
    return made


async def reads(made: Recording, salt: bytes = SALT, *, steps: bool = False) -> Batches:
    """Somebody who has begun to read."""
    batches = made.follow(salt, steps=steps)
    assert not (await anext(batches)).requests
    return batches


def ends(
    made: Recording,
    tokens: tuple[int, ...],
    outcome: str = "ok",
    *,
    read: bool = True,
    let_in: bool = True,
    tenant: str = "acme",
) -> None:
    """A request that came a second ago, with two tokens of answer if it was let in."""
    now = VirtualClock().now
    call = Call("m", "x", SamplingParams(max_tokens=9), "id", terms=Terms(tenant=tenant))
    trail = Trail(now, now() - 1.0, "id", tenant=tenant)
    blocks = None
    if read:
        request = Request("id-1", tokens, len(tokens), SamplingParams())
        trail.asked(request)
        blocks = BlockIds(request)
    if let_in:
        trail.let_in("batch", 0.1)
        trail.began()
        trail.opened(BLOCK)
        trail.tokens(now(), 1)
        trail.tokens(now(), 1)
        blocks.tokens += [7, 8]
    trail.outcome = outcome
    made.ended(call, "batch", trail, blocks, 0.5 if let_in else None, 0.25 if let_in else None)


def test_sizes_times_and_outcomes_are_told() -> None:
    async def main() -> None:
        made = new()
        async with aclosing(await reads(made)) as batches:
            ends(made, tuple(range(10)))
            ends(made, tuple(range(8)), "cancelled")
            ends(made, (1, 2, 3), "resource_exhausted", let_in=False)
            ends(made, (), "resource_exhausted", read=False, let_in=False)
            ends(made, (), "invalid_argument", read=False, let_in=False)
            one, two, three, four = (await anext(batches)).requests
        assert (one.prompt_tokens, one.output_tokens, one.max_tokens) == (10, 2, 9)
        assert (one.slo_class, one.let_in, one.outcome) == ("batch", True, "ok")
        assert (one.block_size, len(one.hashes), one.cached_tokens) == (BLOCK, 2, BLOCK)
        assert (one.ttft_s, one.itl_s) == (0.5, 0.25)
        assert (two.outcome, len(two.hashes)) == ("cancelled", 2)
        assert two.hashes == one.hashes, "the same eight tokens"
        assert (three.let_in, three.HasField("ttft_s"), len(three.hashes)) == (False, False, 0)
        assert (four.prompt_tokens, four.outcome) == (0, "resource_exhausted")

    run_virtual(main())


def test_who_wants_no_hashes_costs_none_and_may_hear_of_arrivals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        made = new()
        made.came("chat", 7)  # nobody reads
        planner = made.follow(SALT, steps=False, blocks=False, arrivals=True)
        assert not (await anext(planner)).arrivals
        monkeypatch.setattr(BlockIds, "of", None)  # whoever hashes fails
        made.came("chat", 10)
        ends(made, tuple(range(10)))
        batch = await anext(planner)
        assert [(came.slo_class, came.prompt_tokens) for came in batch.arrivals] == [("chat", 10)]
        assert [(row.prompt_tokens, list(row.hashes)) for row in batch.requests] == [(10, [])]
        monkeypatch.undo()
        async with aclosing(planner), aclosing(await reads(made)) as recorder:
            made.came("chat", 8)
            ends(made, tuple(range(8)))
            (one,) = (await anext(recorder)).requests
            (other,) = (await anext(planner)).requests
            assert (len(one.hashes), len(other.hashes)) == (2, 0), "each as it asked"
            made.came("chat", 9)
            for _ in range(recording.MOST_REQUESTS):
                made.came("chat", 9)
            told = await anext(planner)
            assert (len(told.arrivals), told.lost) == (recording.MOST_REQUESTS, 1)

    run_virtual(main())


def test_hashes_are_equal_in_one_recording_only_and_say_nothing() -> None:
    async def main() -> None:
        here, there = new(), new()
        prompt = tuple(range(1000, 1016))
        async with (
            aclosing(await reads(here)) as one,
            aclosing(await reads(there)) as same,
            aclosing(await reads(here, OTHER_SALT)) as other,
        ):
            ends(here, prompt)
            ends(there, prompt)
            batches = [await anext(reader) for reader in (one, same, other)]
        first, second, third = (batch.requests[0] for batch in batches)
        assert (first.hashes, first.tenant) == (second.hashes, second.tenant)
        assert not set(first.hashes) & set(third.hashes) and first.tenant != third.tenant
        assert all(0 <= number < 1 << 52 for number in first.hashes)
        ids = BlockIds(Request("r", prompt, 16, SamplingParams())).of("", BLOCK)
        for message in (batch.SerializeToString() for batch in batches):
            assert b"acme" not in message
            assert not any(block[:8] in message for block in ids)

    run_virtual(main())


@pytest.mark.parametrize("salt", [b"", b"short", b"x" * 65])
def test_without_a_salt_nothing_is_told(salt: bytes) -> None:
    async def main() -> None:
        with pytest.raises(InvalidRequest, match="salt"):
            await anext(new().follow(salt, steps=False))

    run_virtual(main())


def test_a_slow_reader_loses_the_oldest_and_hears_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        made = new()
        async with aclosing(await reads(made)) as slow:
            for number in range(MOST_REQUESTS + 10):
                ends(made, (number, *range(10)))
            requests = []
            while len(requests) < MOST_REQUESTS:
                batch = await anext(slow)
                assert batch.lost == 10
                assert sum(len(one.hashes) for one in batch.requests) <= BATCH_BLOCKS + 2
                requests += batch.requests
        assert len(requests) == MOST_REQUESTS

        monkeypatch.setattr(recording, "MOST_BLOCKS", 5)
        async with aclosing(await reads(made)) as slow:
            for number in range(4):
                ends(made, (number, *range(10)))
            batch = await anext(slow)
        assert (batch.lost, len(batch.requests)) == (2, 2)

    run_virtual(main())


def test_who_is_gone_costs_nothing_and_silence_is_said() -> None:
    async def main() -> None:
        made = new()
        async with aclosing(await reads(made)) as reader:
            assert not (await anext(reader)).requests, "a beat"
        ends(made, (1, 2, 3))
        async with aclosing(await reads(made)) as reader:
            assert not (await anext(reader)).requests

    run_virtual(main())


def test_a_router_that_goes_tells_the_rest_and_ends() -> None:
    async def main() -> None:
        made = new()
        async with aclosing(await reads(made)) as batches:
            ends(made, (1, 2, 3))
            made.close()
            told = [len(batch.requests) async for batch in batches]
        assert sum(told) == 1 and not made._readers

    run_virtual(main())


def test_steps_are_told_to_those_who_ask() -> None:
    async def main() -> None:
        made = new()
        one: Replica = replica()
        load = report(one.id, Load())
        load.steps.append(worker.StepReport(prefill_tokens=5, prefill_kv=9, seconds=0.25))
        async with (
            aclosing(await reads(made, steps=True)) as asking,
            aclosing(await reads(made)) as other,
        ):
            made.reported(one, load)
            ends(made, (1, 2, 3))
            [row] = (await anext(asking)).steps
            assert not (await anext(other)).steps
        assert (row.replica, row.hardware, row.step.prefill_kv) == (one.id, "cpu", 9)

    run_virtual(main())


def test_many_readers_one_leaves() -> None:
    async def main() -> None:
        made = new()
        async with aclosing(await reads(made)) as stays:
            leaves = await reads(made)
            waiting = asyncio.ensure_future(anext(leaves))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            ends(made, (1, 2, 3))
            assert len((await anext(stays)).requests) == 1
        assert not made._readers

    run_virtual(main())
