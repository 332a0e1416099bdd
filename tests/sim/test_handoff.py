"""The handoff in virtual time: right tokens and no page lost, whatever happens when."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import handoff
from tests.sim.house import House, expected, request
from workers.core.batch import Batch, StepOutput
from workers.core.clock import run_virtual
from workers.core.errors import Cancelled, InvalidRequest, KvasirError, TicketError, TransferError
from workers.core.request import Request
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.codec import request_to_wire
from workers.worker import Worker

P, D = common.ROLE_PREFILL, common.ROLE_DECODE


async def prefill(made: Worker, what: Request) -> tuple[common.Ticket, worker.FirstToken]:
    return await handoff.prefill(made.prefill.prefill, what)


async def decode(
    made: Worker, what: Request, ticket: common.Ticket, first: int, epoch: int = 1
) -> list[int]:
    return (await handoff.decode(made.decode.decode, what, ticket, first, epoch))[1]


def play(scene: Coroutine[Any, Any, None]) -> None:
    run_virtual(scene)


def test_one_request_gives_the_tokens_of_undivided_decoding() -> None:
    async def scene() -> None:
        async with House().open() as house:
            p, d = house.start("p", P), house.start("d", D)
            prompt = list(range(37))
            what = request("r", prompt, 12)
            ticket, first = await prefill(p, what)
            assert ticket.num_tokens == 37 and ticket.num_blocks == 10
            rest = await decode(d, what, ticket, first.token.id)
            assert [first.token.id, *rest] == expected(prompt, 12)
            house.check_idle()

    play(scene())


def test_second_request_fetches_only_what_decode_does_not_cache() -> None:
    async def scene() -> None:
        async with House().open() as house:
            p, d = house.start("p", P), house.start("d", D)
            for name, prompt in (("a", list(range(20))), ("b", [*range(16), 7, 7, 7, 7, 7])):
                what = request(name, prompt, 6)
                ticket, first = await prefill(p, what)
                rest = await decode(d, what, ticket, first.token.id)
                assert [first.token.id, *rest] == expected(prompt, 6)
            assert d.engine.scheduler.hit_tokens == 16
            assert p.engine.scheduler.hit_tokens == 16
            house.check_idle()

    play(scene())


def test_finish_at_first_token_leaves_no_ticket() -> None:
    async def scene() -> None:
        async with House().open() as house:
            p = house.start("p", P)
            ticket, first = await prefill(p, request("r", [1, 2, 3], 1))
            assert first.finish_reason == common.FINISH_REASON_LENGTH
            assert p.desk.tickets.find(ticket.id) is None
            house.check_idle()

    play(scene())


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_no_token_to_choose_is_told_and_frees_both_sides(role: str) -> None:
    async def scene() -> None:
        async with House().open() as house:
            p, d = house.start("p", P), house.start("d", D)
            runner = (p if role == "prefill" else d).engine.runner
            healthy = runner.execute

            async def refuse(batch: Batch) -> StepOutput:
                output = await healthy(batch)
                return StepOutput(tuple(InvalidRequest("no token left") for _ in output.tokens))

            runner.execute = refuse  # type: ignore[method-assign]
            what = request("r", list(range(30)), 5)  # two chunks: its ticket is open before the end
            with pytest.raises(InvalidRequest, match="no token left"):
                ticket, first = await prefill(p, what)
                await decode(d, what, ticket, first.token.id)
            await asyncio.sleep(1.0)
            house.check_idle()

    play(scene())


def test_lease_runs_out_and_pages_return() -> None:
    async def scene() -> None:
        async with House(ttl_s=3.0).open() as house:
            p, d = house.start("p", P), house.start("d", D)
            what = request("r", list(range(9)), 5)
            ticket, first = await prefill(p, what)
            await asyncio.sleep(2.5)
            p.desk.renew(worker.RenewRequest(ticket_ids=[ticket.id]))
            await asyncio.sleep(2.5)
            assert p.desk.tickets.find(ticket.id) is not None
            await asyncio.sleep(2.5)
            house.check_idle()
            with pytest.raises(TicketError, match="lease over"):
                await decode(d, what, ticket, first.token.id)
            house.check_idle()

    play(scene())


def test_rebind_after_decode_left_before_it_had_everything() -> None:
    async def scene() -> None:
        async with House().open() as house:
            house.fabric.delay_s = 0.5
            p, a, b = house.start("p", P), house.start("a", D), house.start("b", D)
            prompt = list(range(30))
            what = request("r", prompt, 8)
            ticket, first = await prefill(p, what)
            left = asyncio.create_task(decode(a, what, ticket, first.token.id, epoch=1))
            await asyncio.sleep(0.7)
            left.cancel()
            await asyncio.wait({left})
            rest = await decode(b, what, ticket, first.token.id, epoch=2)
            assert [first.token.id, *rest] == expected(prompt, 8)
            house.check_idle()

    play(scene())


def test_higher_epoch_takes_over_and_the_lower_one_is_refused() -> None:
    async def scene() -> None:
        async with House().open() as house:
            house.fabric.delay_s = 0.5
            p, a, b = house.start("p", P), house.start("a", D), house.start("b", D)
            prompt = list(range(30))
            what = request("r", prompt, 4)
            ticket, first = await prefill(p, what)
            old = asyncio.create_task(decode(a, what, ticket, first.token.id, epoch=1))
            await asyncio.sleep(0.7)
            rest = await decode(b, what, ticket, first.token.id, epoch=2)
            assert [first.token.id, *rest] == expected(prompt, 4)
            with pytest.raises((TicketError, TransferError)):
                await old
            with pytest.raises(TicketError):
                await decode(a, what, ticket, first.token.id, epoch=1)
            house.check_idle()

    play(scene())


def test_release_of_an_older_epoch_is_ignored() -> None:
    async def scene() -> None:
        async with House().open() as house:
            house.fabric.delay_s = 0.5
            p, d = house.start("p", P), house.start("d", D)
            prompt = list(range(30))
            what = request("r", prompt, 4)
            ticket, first = await prefill(p, what)
            running = asyncio.create_task(decode(d, what, ticket, first.token.id, epoch=2))
            await asyncio.sleep(0.7)
            late = p.desk.release(worker.ReleaseRequest(ticket_id=ticket.id, epoch=1))
            assert not late.released
            assert [first.token.id, *await running] == expected(prompt, 4)
            house.check_idle()

    play(scene())


def test_release_while_fetching_stops_it_and_frees_both_sides() -> None:
    async def scene() -> None:
        async with House().open() as house:
            house.fabric.delay_s = 0.5
            p, d = house.start("p", P), house.start("d", D)
            what = request("r", list(range(30)), 4)
            ticket, first = await prefill(p, what)
            running = asyncio.create_task(decode(d, what, ticket, first.token.id))
            await asyncio.sleep(0.7)
            p.desk.release(worker.ReleaseRequest(ticket_id=ticket.id, epoch=1))
            with pytest.raises((TicketError, TransferError)):
                await running
            await asyncio.sleep(6.0)
            house.check_idle()

    play(scene())


def test_a_broken_pair_costs_speed_and_no_answer() -> None:
    async def scene() -> None:
        async with House().open() as house:
            p, d = house.start("p", P), house.start("d", D)
            house.fabric.delay_s = 0.5
            prompt = list(range(30))
            what = request("r", prompt, 8)
            ticket, first = await prefill(p, what)
            running = asyncio.create_task(decode(d, what, ticket, first.token.id, epoch=1))
            await asyncio.sleep(0.7)
            house.fabric.cut()
            assert [first.token.id, *await running] == expected(prompt, 8)
            [info] = d.receiver_pairs.report()
            assert info.transport == "" and info.quarantine_left_s > 0
            house.check_idle()

    play(scene())


def test_cancel_ends_a_running_decode() -> None:
    async def scene() -> None:
        async with House().open() as house:
            p, d = house.start("p", P), house.start("d", D)
            what = request("r", list(range(9)), 400)
            ticket, first = await prefill(p, what)
            running = asyncio.create_task(decode(d, what, ticket, first.token.id))
            await asyncio.sleep(0.2)
            d.decode.cancel("r")
            with pytest.raises(Cancelled):
                await running
            await asyncio.sleep(0.01)  # the step that was running still wrote its pages
            house.check_idle()

    play(scene())


def test_prefill_holds_back_when_tickets_pin_half_the_pool() -> None:
    async def scene() -> None:
        async with House(blocks=16, ttl_s=2.0).open() as house:
            p = house.start("p", P)
            prompts = [[base, *range(15)] for base in range(4)]
            running = [
                asyncio.create_task(prefill(p, request(str(i), prompt, 4)))
                for i, prompt in enumerate(prompts)
            ]
            await asyncio.sleep(1.0)
            assert p.engine.pool.num_referenced == 8
            assert sum(task.done() for task in running) == 2
            await asyncio.gather(*running)  # leases run out, the others follow
            await asyncio.sleep(3.0)
            house.check_idle()

    play(scene())


def test_preempted_sequences_still_say_the_right_tokens() -> None:
    async def scene() -> None:
        async with House(blocks=24).open() as house:
            p, d = house.start("p", P), house.start("d", D)

            async def one(i: int) -> int:
                prompt = [i, *range(10)]
                what = request(str(i), prompt, 40)
                ticket, first = await prefill(p, what)
                rest = await decode(d, what, ticket, first.token.id)
                assert [first.token.id, *rest] == expected(prompt, 40)
                return d.engine.pool.num_referenced

            await asyncio.gather(*(one(i) for i in range(4)))
            house.check_idle()

    play(scene())


def test_a_prefill_call_that_is_left_frees_its_pages_at_once() -> None:
    async def scene() -> None:
        async with House(ttl_s=1000.0).open() as house:
            p = house.start("p", P)
            for events in (1, 2, 3):
                spec = request_to_wire(request(str(events), [events, *range(40)], 5))
                stream = p.prefill.prefill(worker.PrefillRequest(sequence=spec))
                for _ in range(events):
                    await anext(stream)
                await stream.aclose()  # type: ignore[attr-defined]
                await asyncio.sleep(0.1)
                house.check_idle()

    play(scene())


def test_pages_being_written_when_decode_is_cancelled_are_not_given_away() -> None:
    async def scene() -> None:
        async with House(blocks=20).open() as house:
            house.fabric.delay_s = 0.05
            p, d = house.start("p", P), house.start("d", D)
            for when in range(1, 100, 4):
                prompt = [when, *range(30)]
                what = request(f"left-{when}", prompt, 8)
                ticket, first = await prefill(p, what)
                left = asyncio.create_task(decode(d, what, ticket, first.token.id))
                await asyncio.sleep(when * 0.01)
                left.cancel()
                other = request(f"next-{when}", [*range(30), when], 8)
                ticket, first = await prefill(p, other)
                rest = await decode(d, other, ticket, first.token.id)
                assert [first.token.id, *rest] == expected([*range(30), when], 8)
                await asyncio.wait({left})
            await asyncio.sleep(30)
            house.check_idle()

    play(scene())


ACTIONS = st.lists(
    st.tuples(
        st.floats(0.0, 0.3),  # when it arrives
        st.integers(1, 60),  # prompt length
        st.integers(0, 3),  # which prompt family: shares a prefix with its kin
        st.integers(1, 20),  # tokens wanted
        st.sampled_from(["run", "cancel", "release", "rebind", "expire", "cut", "wire_cancel"]),
        st.floats(0.0, 0.4),  # when the mishap strikes
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40)
@given(ACTIONS, st.integers(20, 64), st.integers(1, 4))
def test_nothing_leaks_and_nobody_reads_wrong_pages(
    actions: list[tuple[float, int, int, int, str, float]], blocks: int, staging_blocks: int
) -> None:
    async def scene() -> None:
        house = House(blocks=blocks, ttl_s=2.0, staging_blocks=staging_blocks)
        async with house.open():
            p = house.start("p", P)
            ds = [house.start("d0", D), house.start("d1", D)]

            async def one(i: int, action: tuple[float, int, int, int, str, float]) -> None:
                at, length, family, count, mishap, when = action
                await asyncio.sleep(at)
                prompt = [family * 100 + k for k in range(length)]
                what = request(str(i), prompt, count)
                right = expected(prompt, count)
                ticket, first = await prefill(p, what)
                assert first.token.id == right[0]
                if first.finish_reason:
                    return
                if mishap == "expire":
                    await asyncio.sleep(2.6)
                running = asyncio.create_task(
                    decode(ds[i % 2], what, ticket, first.token.id, epoch=1)
                )
                await asyncio.sleep(when)
                match mishap:
                    case "cancel":
                        running.cancel()
                    case "wire_cancel":
                        p.prefill.cancel(str(i))
                        ds[i % 2].decode.cancel(str(i))
                    case "release":
                        p.desk.release(worker.ReleaseRequest(ticket_id=ticket.id, epoch=1))
                    case "cut":
                        house.fabric.cut()
                    case "rebind":
                        try:
                            rest = await decode(
                                ds[1 - i % 2], what, ticket, first.token.id, epoch=2
                            )
                            assert [right[0], *rest] == right
                        except KvasirError:
                            pass
                try:
                    rest = await running
                except (KvasirError, asyncio.CancelledError):
                    return
                assert [right[0], *rest] == right

            async with asyncio.TaskGroup() as group:
                for i, action in enumerate(actions):
                    group.create_task(one(i, action))
            await asyncio.sleep(20.0)  # leases and deadlines run out
            house.check_idle()

    play(scene())
