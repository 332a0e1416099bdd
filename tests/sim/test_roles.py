"""Roles of one worker, drains, and races that a review found; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests import handoff
from tests.sim.house import House, expected, request
from workers.core.clock import run_virtual
from workers.core.errors import Cancelled, InvalidRequest, KvasirError, Unavailable
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.codec import request_to_wire
from workers.worker import STEP_LIMIT_S, Worker

P, D = common.ROLE_PREFILL, common.ROLE_DECODE


async def prefill(made: Worker, what: Any) -> tuple[common.Ticket, int]:
    ticket, first = await handoff.prefill(made.prefill.prefill, what)
    return ticket, first.token.id


async def decode(made: Worker, what: Any, ticket: common.Ticket, first: int) -> list[int]:
    return [first, *(await handoff.decode(made.decode.decode, what, ticket, first))[1]]


def test_one_worker_in_both_roles_does_not_wait_for_itself() -> None:
    """Prompts wait for pins, and the reservation that frees them must not wait for prompts."""

    async def scene() -> None:
        async with House(blocks=20, ttl_s=30.0).open() as house:
            made = house.start("w", P)

            async def one(i: int) -> None:
                prompt = [i * 50 + k for k in range(24)]
                what = request(f"r{i}", prompt, 5)
                ticket, first = await prefill(made, what)
                assert await decode(made, what, ticket, first) == expected(prompt, 5)

            async with asyncio.timeout(25):
                await asyncio.gather(*(one(i) for i in range(4)))
            house.check_idle()

    run_virtual(scene())


def test_set_role_changes_what_is_reported_and_refuses_nonsense() -> None:
    async def scene() -> None:
        async with House().open() as house:
            made = house.start("w", P)
            made.set_role(D)
            assert (await anext(aiter(made.watch(1.0)))).role == D
            with pytest.raises(InvalidRequest):
                made.set_role(common.ROLE_UNSPECIFIED)

    run_virtual(scene())


def test_drain_takes_nothing_new_and_waits_for_what_is_there() -> None:
    async def scene() -> None:
        async with House().open() as house:
            p, d = house.start("p", P), house.start("d", D)
            prompt = list(range(20))
            what = request("r", prompt, 200)
            ticket, first = await prefill(p, what)
            running = asyncio.create_task(decode(d, what, ticket, first))
            await asyncio.sleep(0.2)
            assert await d.drain(0.05) == 1, "the budget was too short"
            with pytest.raises(Unavailable, match="draining"):
                await decode(d, what, ticket, first)
            assert await d.drain(60.0) == 0
            assert await running == expected(prompt, 200)
            assert await p.drain(1.0) == 0
            with pytest.raises(Unavailable, match="draining"):
                await prefill(p, request("s", prompt, 2))
            assert (await anext(aiter(d.watch(1.0)))).state == "draining"
            house.check_idle()

    run_virtual(scene())


@pytest.mark.parametrize("moment", range(1, 30, 2))
def test_who_leaves_in_mid_chunk_takes_nobody_along(moment: int) -> None:
    """Others that wait for the same pair go on inline."""

    async def scene() -> None:
        async with House(blocks=200).open() as house:
            house.fabric.delay_s = 0.05
            p, d = house.start("p", P), house.start("d", D)
            prompts = [[i * 100 + k for k in range(60)] for i in range(5)]
            whats = [request(f"r{i}", prompt, 5) for i, prompt in enumerate(prompts)]
            tickets = [await prefill(p, what) for what in whats]
            tasks = [
                asyncio.create_task(decode(d, what, *ticket))
                for what, ticket in zip(whats, tickets, strict=True)
            ]
            await asyncio.sleep(moment * 0.04)
            tasks[0].cancel()
            for task, prompt in zip(tasks[1:], prompts[1:], strict=True):
                assert await task == expected(prompt, 5)
            p.prefill.cancel("r0")
            await asyncio.wait(tasks)
            house.check_idle()

    run_virtual(scene())


def test_cancel_while_opened_is_being_written() -> None:
    async def scene() -> None:
        async with House().open() as house:
            p = house.start("p", P)
            spec = request_to_wire(request("r", list(range(10)), 5))
            stream = p.prefill.prefill(worker.PrefillRequest(sequence=spec))
            assert (await anext(stream)).HasField("opened")
            p.prefill.cancel("r")
            with pytest.raises(Cancelled):
                await anext(stream)
            house.check_idle()

    run_virtual(scene())


def test_cancel_between_the_step_and_its_reader() -> None:
    async def scene() -> None:
        async with House().open() as house:
            p = house.start("p", P)
            step = p.engine.step

            async def then_cancel() -> Any:
                updates = await step()
                if updates and updates[0].tokens:
                    p.prefill.cancel("r")
                return updates

            p.engine.step = then_cancel  # type: ignore[method-assign]
            with pytest.raises(Cancelled):
                await prefill(p, request("r", list(range(10)), 5))
            house.check_idle()

    run_virtual(scene())


def test_cancel_between_admission_and_start() -> None:
    async def scene() -> None:
        async with House().open() as house:
            p, d = house.start("p", P), house.start("d", D)
            what = request("r", list(range(10)), 5)
            ticket, first = await prefill(p, what)
            admit = d.decode._admit

            async def then_cancelled(*args: Any) -> Any:
                admitted = await admit(*args)
                asyncio.get_running_loop().call_soon(d.decode.cancel, "r")
                return admitted

            d.decode._admit = then_cancelled  # type: ignore[method-assign, assignment]
            with pytest.raises(Cancelled):
                await decode(d, what, ticket, first)
            house.check_idle()

    run_virtual(scene())


def test_a_fetch_that_does_not_move_gives_way_to_a_higher_epoch() -> None:
    """A decode worker that is frozen with the ticket in its hands holds up nobody."""

    async def scene() -> None:
        async with House(ttl_s=10.0).open() as house:
            p, d = house.start("p", P), house.start("d", D)
            prompt = list(range(60))
            what = request("r", prompt, 5)
            ticket, first = await prefill(p, what)

            async def redeem() -> AsyncIterator[worker.FetchRequest]:
                yield worker.FetchRequest(
                    redeem=worker.Redeem(
                        ticket_id=ticket.id,
                        epoch=1,
                        kv_abi=ticket.kv_abi,
                        receiver="frozen/1",
                        known_tokens=61,
                    )
                )
                await asyncio.sleep(1000)

            frozen = p.desk.fetch(redeem())
            while not (await anext(frozen)).HasField("inline"):
                pass
            async with asyncio.timeout(2.0):
                rest = (await handoff.decode(d.decode.decode, what, ticket, first, epoch=2))[1]
            assert [first, *rest] == expected(prompt, 5)
            with pytest.raises(KvasirError, match="epoch 2 takes over"):
                async for _ in frozen:
                    pass
            house.check_idle()

    run_virtual(scene())


def test_a_step_that_never_ends_is_noticed() -> None:
    async def scene() -> None:
        async with House().open() as house:
            p = house.start("p", P)

            device = asyncio.Event()

            async def hang(batch: object) -> None:
                await device.wait()
                raise KvasirError("the device came back")

            p.engine.runner.execute = hang  # type: ignore[method-assign, assignment]
            left = asyncio.create_task(prefill(p, request("r", [1, 2, 3], 5)))
            await asyncio.sleep(STEP_LIMIT_S - 5)
            assert not p.hung.is_set()
            await asyncio.wait_for(p.hung.wait(), 10)
            left.cancel()
            device.set()  # a step cannot be stopped: the engine ends with it

    run_virtual(scene())
