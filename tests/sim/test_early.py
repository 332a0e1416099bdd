"""A ticket that is bound while its prompt is still computed, in virtual time: blocks travel while
later chunks compute, and whatever ends the prompt ends the fetch."""

from __future__ import annotations

import asyncio

import pytest

from tests.sim.carrier import Carrier
from tests.sim.house import BLOCK, House, expected, request
from workers.core.batch import Batch, StepOutput
from workers.core.clock import run_virtual
from workers.core.errors import InvalidRequest, KvasirError, TicketError
from workers.core.ticket import TicketState
from workers.core.waits import inline
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker

P, D = common.ROLE_PREFILL, common.ROLE_DECODE
CHUNK = 16  # tokens of a step
CHUNK_S = 0.1


def house_of(**sizes: int) -> House:
    house = House(
        step_seconds=lambda batch: CHUNK_S if batch.num_tokens > 1 else 0.001,
        offload=lambda: inline,
        blocks=sizes.get("blocks", 200),
        staging_blocks=2 * CHUNK // BLOCK,
    )
    house.fabric.delay_s = 0.8 * CHUNK_S  # of what one step computes
    return house


def test_transfer_hides_behind_later_chunks() -> None:
    """Of a prompt of 8 chunks only the last one's way is left when everything is computed."""
    prompt = list(range(8 * CHUNK))

    async def admitted(early: bool) -> worker.Admitted:
        async with house_of().open() as house:
            house.start("p", P), house.start("d", D)
            warm = Carrier(house, request("warm", [900] * 50, 2), ["d"])  # makes the pair
            await warm.go("p")
            carrier = Carrier(house, request("r", prompt, 5), ["d"])
            assert await carrier.go("p", early=early) == expected(prompt, 5)
            assert not carrier.failures and carrier.admitted.transport == "memory"
            house.check_idle()
            return carrier.admitted

    late, early = run_virtual(admitted(False)), run_virtual(admitted(True))
    assert late.fetched_bytes == early.fetched_bytes
    wire_s = 8 * 0.8 * CHUNK_S
    assert late.exposed_s >= 0.95 * wire_s
    assert early.exposed_s <= 0.2 * late.exposed_s
    assert early.transfer_s > 7 * CHUNK_S, "it began with the first chunk"


def test_what_either_side_caches_is_sent_at_once_or_not_at_all() -> None:
    shared, rest = list(range(80)), list(range(500, 548))

    async def scene() -> None:
        async with house_of().open() as house:
            _, a = house.start("p", P), house.start("a", D)
            house.start("b", D)
            first = Carrier(house, request("first", [*shared, 1], 3), ["a"])
            await first.go("p")
            for decoder, cached in (("a", 80), ("b", 0)):
                prompt = [*shared, *rest[: 40 if decoder == "a" else 48]]
                carrier = Carrier(house, request(decoder, prompt, 4), [decoder])
                assert await carrier.go("p", early=True) == expected(prompt, 4)
                admitted = carrier.admitted
                assert admitted.cached_tokens == cached
                blocks = -(-len(prompt) // BLOCK) - cached // BLOCK
                assert admitted.fetched_bytes == blocks * a.engine.runner.pages.block_bytes
            house.check_idle()

    run_virtual(scene())


def test_a_prompt_that_ends_with_its_first_token_ends_the_fetch() -> None:
    async def scene() -> None:
        async with house_of().open() as house:
            p, d = house.start("p", P), house.start("d", D)
            prompt = list(range(60))
            carrier = Carrier(house, request("r", prompt, 1), ["d"])
            assert await carrier.go("p", early=True) == expected(prompt, 1)
            await asyncio.sleep(6.0)
            house.check_idle()
            (ticket,) = p.desk.tickets.ended()
            assert ticket.state is TicketState.RELEASED and ticket.epoch == 1, "it was bound"
            assert d.engine.scheduler.query_tokens > 0

    run_virtual(scene())


@pytest.mark.parametrize("how", ["cancelled", "left", "failed", "refused"])
def test_a_prompt_that_ends_before_its_time_ends_the_fetch(how: str) -> None:
    async def scene() -> None:
        async with house_of().open() as house:
            p, d = house.start("p", P), house.start("d", D)
            carrier = Carrier(house, request("r", list(range(100)), 5), ["d"])
            running = asyncio.create_task(carrier.go("p", early=True))
            await asyncio.sleep(3.5 * CHUNK_S)
            (ticket,) = p.desk.tickets.live()
            assert ticket.epoch == 1, "it is being fetched"
            healthy = p.engine.runner.execute

            async def fail(batch: Batch) -> StepOutput:
                output = await healthy(batch)
                if how == "refused" and not output.tokens:
                    return output
                p.engine.runner.execute = healthy  # type: ignore[method-assign]
                if how == "refused":
                    return StepOutput((InvalidRequest("no token"),))
                raise KvasirError("the step failed")

            match how:
                case "cancelled":
                    p.prefill.cancel("r")
                case "left":
                    running.cancel()
                case _:
                    p.engine.runner.execute = fail  # type: ignore[method-assign]
            if how != "left":
                assert await running == expected(list(range(100)), 5), "it was computed again"
                assert carrier.failures
            await asyncio.wait({running})
            await asyncio.sleep(6.0)
            house.check_idle()
            assert ticket.state is TicketState.RELEASED, ticket.story
            assert d.num_busy == 0

    run_virtual(scene())


def test_who_is_fetched_is_not_preempted_and_a_full_pool_waits() -> None:
    """Others decode on the prefill worker, and want its pages."""

    async def scene() -> None:
        async with house_of(blocks=40).open() as house:
            p = house.start("p", P)
            house.blocks = 200
            house.start("d", D)
            others = [Carrier(house, request(f"o{i}", [i] * 9, 60), []) for i in range(3)]
            decoding = [asyncio.create_task(other.aggregated("p")) for other in others]
            await others[0].decoded(5)
            prompt = list(range(72))
            carrier = Carrier(house, request("r", prompt, 5), ["d"])
            assert await carrier.go("p", early=True) == expected(prompt, 5)
            assert not carrier.failures
            for i, task in enumerate(decoding):
                assert await task == expected([i] * 9, 60)
            assert p.engine.scheduler.preemptions > 0
            house.check_idle()

    run_virtual(scene())


def test_the_ticket_can_be_bound_again_while_its_prompt_is_computed() -> None:
    async def scene() -> None:
        async with house_of().open() as house:
            p, a, b = house.start("p", P), house.start("a", D), house.start("b", D)
            prompt = list(range(120))
            carrier = Carrier(house, request("r", prompt, 5), ["a"])
            running = asyncio.create_task(carrier.go("p", early=True))
            await asyncio.sleep(3.5 * CHUNK_S)
            (ticket,) = p.desk.tickets.live()
            told = p.desk.report()[0]
            message = worker.DecodeRequest(
                sequence=carrier.spec(),
                ticket=common.Ticket(
                    id=told.id, prefill=p.me, kv_abi="sim", num_tokens=120, num_blocks=30
                ),
                epoch=2,
            )
            tokens = [
                token.id
                async for event in b.decode.decode(message)
                for token in event.tokens.tokens
            ]
            assert tokens == expected(prompt, 5)[1:], "the first one came with the KV"
            assert await running == expected(prompt, 5), "prefilled again, for that call was lost"
            assert isinstance(carrier.failures[0], TicketError), carrier.failures
            assert ticket.state is TicketState.REDEEMED
            await asyncio.sleep(6.0)
            house.check_idle()
            assert a.num_busy == 0

    run_virtual(scene())
