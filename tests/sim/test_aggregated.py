"""Prefill and decode of one request on one engine, without a ticket; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import handoff
from tests.sim.house import House, expected, request
from workers.core.batch import Batch, StepOutput
from workers.core.clock import run_virtual
from workers.core.errors import Cancelled, InvalidRequest, KvasirError, Unavailable
from workers.core.request import Request
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.codec import request_to_wire
from workers.worker import Worker

P, D, A = common.ROLE_PREFILL, common.ROLE_DECODE, common.ROLE_AGGREGATED


def stream(made: Worker, what: Request) -> AsyncIterator[worker.DecodeEvent]:
    return made.aggregated.decode(worker.DecodeRequest(sequence=request_to_wire(what)))


async def whole(made: Worker, what: Request) -> tuple[worker.Admitted, list[int]]:
    return await handoff.aggregated(made.aggregated.decode, what)


def test_events_come_in_order_and_tokens_are_those_of_undivided_decoding() -> None:
    async def scene() -> None:
        async with House().open() as house:
            made = house.start("w", A)
            prompt = list(range(37))  # three chunks of 16 tokens at most
            events = [event async for event in stream(made, request("r", prompt, 12))]
            kinds = [event.WhichOneof("event") for event in events]
            assert kinds == ["admitted", "progress", "progress", "prefilled", *["tokens"] * 12]
            assert [e.progress.computed_tokens for e in events[1:3]] == [16, 32]
            admitted = events[0].admitted
            assert (admitted.transport, admitted.transfer_s, admitted.cached_tokens) == (
                "local", 0.0, 0,
            )  # fmt: skip
            assert events[3].prefilled.prefill_s > 0
            tokens = [token for event in events[4:] for token in event.tokens.tokens]
            assert [token.id for token in tokens] == expected(prompt, 12)
            assert [token.position for token in tokens] == list(range(37, 49))
            assert [e.tokens.finish_reason for e in events[4:]] == [
                *[common.FINISH_REASON_UNSPECIFIED] * 11,
                common.FINISH_REASON_LENGTH,
            ]
            assert {event.attempt for event in events} == {0}
            house.check_idle()

    run_virtual(scene())


def test_a_prefix_is_cached_and_said_to_be() -> None:
    async def scene() -> None:
        async with House().open() as house:
            made = house.start("w", A)
            for name, prompt, cached in (
                ("a", list(range(20)), 0),
                ("b", [*range(16), 7, 7, 7, 7, 7], 16),
                ("retry", [*range(20), *expected(list(range(20)), 6)], 24),
            ):
                admitted, tokens = await whole(made, request(name, prompt, 6))
                assert (admitted.cached_tokens, tokens) == (cached, expected(prompt, 6))
            house.check_idle()

    run_virtual(scene())


def test_any_worker_does_it_and_an_aggregated_one_does_all_the_rest() -> None:
    async def scene() -> None:
        async with House().open() as house:
            p, d, a = house.start("p", P), house.start("d", D), house.start("a", A)
            prompt = list(range(30))
            for made in (p, d, a):
                name = f"alone on {made.me.id}"
                assert (await whole(made, request(name, prompt, 5)))[1] == expected(prompt, 5)
            for giver, taker in ((p, a), (a, d), (a, a)):
                what = request(f"{giver.me.id} to {taker.me.id}", prompt, 5)
                _, tokens = await handoff.both(giver.prefill.prefill, taker.decode.decode, what)
                assert tokens == expected(prompt, 5)
            house.check_idle()

    run_virtual(scene())


def test_a_prompt_and_the_decodes_of_others_share_steps() -> None:
    async def scene() -> None:
        async with House().open() as house:
            made = house.start("w", A)
            batches: list[Batch] = []
            execute = made.engine.runner.execute

            async def seen(batch: Batch) -> StepOutput:
                batches.append(batch)
                return await execute(batch)

            made.engine.runner.execute = seen  # type: ignore[method-assign]
            first = asyncio.create_task(whole(made, request("r", list(range(5)), 60)))
            await asyncio.sleep(0)
            long = list(range(500, 600))
            assert (await whole(made, request("s", long, 4)))[1] == expected(long, 4)
            assert (await first)[1] == expected(list(range(5)), 60)
            mixed = [b for b in batches if {c.is_decode for c in b.chunks} == {True, False}]
            assert len(mixed) >= 100 // 16
            house.check_idle()

    run_virtual(scene())


def test_the_load_report_tells_uncomputed_prompts_and_the_role() -> None:
    async def scene() -> None:
        async with House().open() as house:
            made = house.start("w", A)
            running = [
                asyncio.create_task(whole(made, request(str(i), [i] * 40, 30))) for i in range(2)
            ]
            await asyncio.sleep(0)
            report = await anext(aiter(made.watch(1.0)))
            assert (report.role, report.waiting, report.waiting_tokens) == (A, 2, 80)
            await asyncio.gather(*running)
            report = await anext(aiter(made.watch(1.0)))
            assert (report.waiting_tokens, report.running, report.blocks_used) == (0, 0, 0)
            house.check_idle()

    run_virtual(scene())


def test_drain_takes_nothing_new_and_waits_for_what_is_there() -> None:
    async def scene() -> None:
        async with House().open() as house:
            made = house.start("w", A)
            prompt = list(range(20))
            running = asyncio.create_task(whole(made, request("r", prompt, 200)))
            await asyncio.sleep(0.05)
            assert await made.drain(0.05) == 1, "the budget was too short"
            with pytest.raises(Unavailable, match="draining"):
                await whole(made, request("s", prompt, 2))
            assert await made.drain(60.0) == 0
            assert (await running)[1] == expected(prompt, 200)
            house.check_idle()

    run_virtual(scene())


@pytest.mark.parametrize("events", range(7))
@pytest.mark.parametrize("how", ["leave", "cancel"])
def test_whoever_ends_it_at_any_event_frees_every_page(events: int, how: str) -> None:
    async def scene() -> None:
        async with House().open() as house:
            made = house.start("w", A)
            call = stream(made, request("r", list(range(40)), 200))
            waiting = asyncio.ensure_future(anext(call))
            for _ in range(events):
                await waiting
                waiting = asyncio.ensure_future(anext(call))
            await asyncio.sleep(0)
            if how == "leave":
                waiting.cancel()
                await asyncio.wait({waiting})
                await call.aclose()  # type: ignore[attr-defined]
            else:
                made.aggregated.cancel("somebody else")
                made.aggregated.cancel("r")
                with pytest.raises(Cancelled):
                    await waiting
                    async for _ in call:
                        pass
            await asyncio.sleep(0.02)  # the step that runs; the answer would take ten times as long
            house.check_idle()

    run_virtual(scene())


def test_an_error_of_its_own_ends_it_alone() -> None:
    async def scene() -> None:
        async with House().open() as house:
            made = house.start("w", A)
            with pytest.raises(InvalidRequest, match="0..999"):
                await whole(made, request("r", [5000], 3))
            healthy = made.engine.runner.execute

            async def refuse(batch: Batch) -> StepOutput:
                output = await healthy(batch)
                return StepOutput(tuple(InvalidRequest("no token left") for _ in output.tokens))

            made.engine.runner.execute = refuse  # type: ignore[method-assign]
            with pytest.raises(InvalidRequest, match="no token left"):
                await whole(made, request("r", list(range(30)), 5))
            house.check_idle()

    run_virtual(scene())


def test_preempted_sequences_still_say_the_right_tokens() -> None:
    async def scene() -> None:
        async with House(blocks=24).open() as house:
            made = house.start("w", A)

            async def one(i: int) -> None:
                prompt = [i, *range(10)]
                events = [event async for event in stream(made, request(str(i), prompt, 40))]
                tokens = [token.id for event in events for token in event.tokens.tokens]
                assert tokens == expected(prompt, 40)
                kinds = [event.WhichOneof("event") for event in events]
                assert set(kinds[kinds.index("prefilled") + 1 :]) == {"tokens"}

            await asyncio.gather(*(one(i) for i in range(4)))
            assert made.engine.scheduler.preemptions > 0
            house.check_idle()

    run_virtual(scene())


ACTIONS = st.lists(
    st.tuples(
        st.floats(0.0, 0.05),  # when it arrives; a step takes about a millisecond
        st.integers(1, 60),  # prompt length
        st.integers(0, 3),  # which prompt family: shares a prefix with its kin
        st.integers(1, 20),  # tokens wanted
        st.sampled_from(
            ["a", "b", "a to b"]
        ),  # alone on a worker, or prefilled here, decoded there
        st.sampled_from(["run", "leave", "cancel"]),
        st.floats(0.0, 0.05),  # when the mishap strikes
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=100)
@given(ACTIONS, st.integers(20, 64))
def test_nothing_leaks_where_both_ways_share_workers(
    actions: list[tuple[float, int, int, int, str, str, float]], blocks: int
) -> None:
    async def scene() -> None:
        async with House(blocks=blocks, ttl_s=2.0).open() as house:
            made = {name: house.start(name, A) for name in "ab"}

            async def run(what: Request, way: str) -> list[int]:
                if way in made:
                    return (await whole(made[way], what))[1]
                calls = made["a"].prefill.prefill, made["b"].decode.decode
                return (await handoff.both(*calls, what))[1]

            async def one(i: int, action: tuple[float, int, int, int, str, str, float]) -> None:
                at, length, family, count, way, mishap, when = action
                await asyncio.sleep(at)
                prompt = [family * 100 + k for k in range(length)]
                running = asyncio.create_task(run(request(str(i), prompt, count), way))
                await asyncio.sleep(when)
                if mishap == "leave":
                    running.cancel()
                if mishap == "cancel":
                    for each in made.values():
                        for role in (each.prefill, each.decode, each.aggregated):
                            role.cancel(str(i))
                try:
                    assert await running == expected(prompt, count)
                except (KvasirError, asyncio.CancelledError):
                    assert mishap != "run" or way == "a to b", "only a lease may run out"

            async with asyncio.TaskGroup() as group:
                for i, action in enumerate(actions):
                    group.create_task(one(i, action))
            await asyncio.sleep(20.0)  # leases and deadlines run out
            house.check_idle()

    run_virtual(scene())
