"""A replica gets another role while it is busy, in virtual time: nobody is dropped, nothing that it
has cached is lost, and it serves in the new role at once."""

from __future__ import annotations

import asyncio

import pytest

from tests import handoff
from tests.sim.carrier import Carrier
from tests.sim.house import BLOCK, House, expected, request
from workers.core.batch import Batch
from workers.core.clock import run_virtual
from workers.core.waits import inline
from workers.flip import OFFER_AGAIN_S
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.codec import request_to_wire
from workers.worker import Worker

P, D, A = common.ROLE_PREFILL, common.ROLE_DECODE, common.ROLE_AGGREGATED
STEP_S = 0.05
PROMPT = list(range(40))


def steady(batch: Batch) -> float:
    return STEP_S


def busy_house() -> House:
    return House(step_seconds=steady, offload=lambda: inline, blocks=100)


async def role_of(made: Worker) -> common.Role:
    return (await anext(aiter(made.watch(1.0)))).role


def changes(made: Worker) -> tuple[float, float]:
    """How many are over, and the seconds that they took together."""
    read = made.meter.registry.get_sample_value
    name = "kvasir_worker_role_change_seconds"
    return read(f"{name}_count") or 0.0, read(f"{name}_sum") or 0.0


async def changed(made: Worker, times: int) -> None:
    async with asyncio.timeout(60):
        while changes(made)[0] < times:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("begun_on", ["a decode worker", "an aggregated worker"])
def test_what_decodes_moves_to_others_when_its_replica_becomes_a_prefill_one(begun_on: str) -> None:
    async def scene() -> None:
        async with (house := busy_house()).open():
            aggregated = begun_on == "an aggregated worker"
            house.start("p", P)
            a, b = house.start("a", A if aggregated else D), house.start("b", D)
            carriers = [
                Carrier(house, request(f"r{i}", [*PROMPT, i], 60), ["a", "b"]) for i in range(3)
            ]
            running = [
                asyncio.create_task(c.aggregated("a") if aggregated else c.go("p"))
                for c in carriers
            ]
            for carrier in carriers:
                await carrier.decoded(10)
            a.set_role(P)
            assert await role_of(a) == P, "placement hears of it with the next report"
            await changed(a, 1)
            loop = asyncio.get_running_loop()
            left = loop.time()
            assert all(carrier.moved == 1 for carrier in carriers) and a.num_busy == 0
            again = request("s", [*PROMPT, 0], 5)
            spec = worker.PrefillRequest(sequence=request_to_wire(again))
            cached, served = 0, 0.0
            async for event in a.prefill.prefill(spec):
                if event.HasField("opened"):
                    cached = event.opened.cached_tokens
                if event.HasField("first_token"):
                    served = loop.time()
            a.prefill.cancel("s")
            assert cached >= len(PROMPT) // BLOCK * BLOCK, "prefix blocks are still there"
            assert 0 < served - left <= 1.0, "it serves in its new role"
            for i, task in enumerate(running):
                assert await task == expected([*PROMPT, i], 60)
            assert b.engine.steps.recorded > 5, "b went on with them"
            house.check_idle()

    run_virtual(scene())


def test_what_nobody_takes_ends_where_it_is() -> None:
    async def scene() -> None:
        async with (house := busy_house()).open():
            house.start("p", P)
            a = house.start("a", D)
            carrier = Carrier(house, request("r", PROMPT, 120), ["a"])
            running = asyncio.create_task(carrier.go("p"))
            await carrier.decoded(5)
            a.set_role(P)
            while not (offers := [t for t in a.desk.tickets.live() if t.moving]):
                await asyncio.sleep(0.001)
            await asyncio.sleep(STEP_S)
            a.desk.release(worker.ReleaseRequest(ticket_id=offers[0].id, epoch=1))
            await asyncio.sleep(OFFER_AGAIN_S + 3 * STEP_S)
            assert carrier.log.count("moving from a") >= 2, "it is offered again"
            assert await running == expected(PROMPT, 120) and not carrier.failures
            await changed(a, 1)
            house.check_idle()

    run_virtual(scene())


def test_a_prompt_is_computed_to_its_end_and_its_ticket_stays_valid() -> None:
    async def scene() -> None:
        async with (house := busy_house()).open():
            p, d = house.start("p", P), house.start("d", D)
            held = request("held", PROMPT, 5)
            ticket, first = await handoff.prefill(p.prefill.prefill, held)
            longer = [*range(500, 580)]
            computing = asyncio.create_task(
                handoff.prefill(p.prefill.prefill, request("long", longer, 5))
            )
            await asyncio.sleep(1.5 * STEP_S)
            p.set_role(D)
            assert await role_of(p) == D and not computing.done()
            late, first_of_late = await computing
            await changed(p, 1)
            for name, prompt, ticket_, first_ in (
                ("held", PROMPT, ticket, first.token.id),
                ("long", longer, late, first_of_late.token.id),
            ):
                what = request(name, prompt, 5)
                rest = (await handoff.decode(d.decode.decode, what, ticket_, first_))[1]
                assert [first_, *rest] == expected(prompt, 5)
            house.check_idle()

    run_virtual(scene())


def test_only_what_ran_at_the_change_is_sent_away() -> None:
    """Placement may decode on a prefill replica what that has computed alone."""

    async def scene() -> None:
        async with (house := busy_house()).open():
            a, _ = house.start("a", D), house.start("b", D)
            a.set_role(P)
            await changed(a, 1)
            carrier = Carrier(house, request("r", PROMPT, 30), ["a", "b"])
            assert await carrier.aggregated("a") == expected(PROMPT, 30)
            assert not carrier.moved
            house.check_idle()

    run_virtual(scene())


def test_a_role_that_changes_back_keeps_what_has_not_left() -> None:
    async def scene() -> None:
        async with (house := busy_house()).open():
            house.start("p", P)
            a = house.start("a", D)
            carrier = Carrier(house, request("r", PROMPT, 100), ["a"])
            running = asyncio.create_task(carrier.go("p"))
            await carrier.decoded(5)
            a.set_role(P)
            await asyncio.sleep(0.1)
            a.set_role(D)
            await changed(a, 1)
            assert await role_of(a) == D
            assert await running == expected(PROMPT, 100)
            house.check_idle()

    run_virtual(scene())


def test_the_registry_hears_of_a_new_role_and_not_of_the_same() -> None:
    async def scene() -> None:
        async with House().open() as house:
            made = house.start("w", P)
            heard: list[str] = []
            made.on_role = heard.append
            for role in (P, D, D, A):
                made.set_role(role)
            assert heard == ["decode", "aggregated"]

    run_virtual(scene())
