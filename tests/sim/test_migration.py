"""Running sequences that go on elsewhere, in virtual time: the same tokens, each once, and at most
a step without one; where nobody takes them, they go on where they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import handoff
from tests.sim.carrier import Carrier
from tests.sim.house import House, expected, request
from workers import tickets
from workers.core.batch import Batch
from workers.core.clock import run_virtual
from workers.core.errors import KvasirError, Unavailable
from workers.core.request import Request, SamplingParams
from workers.core.ticket import TicketState
from workers.core.waits import inline
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker

P, D = common.ROLE_PREFILL, common.ROLE_DECODE
STEP_S = 0.05
PROMPT = list(range(37))


def steady(batch: Batch) -> float:
    return STEP_S


def seeded(name: str, prompt: list[int], max_tokens: int) -> Request:
    params = SamplingParams(temperature=0.8, seed=7, max_tokens=max_tokens)
    return Request(name, tuple(prompt), len(prompt), params)


def moving(house: House, name: str, state: TicketState) -> bool:
    """Whether `name` has a running sequence on offer, in this state."""
    return any(t.moving and t.state is state for t in house.workers[name].desk.tickets.live())


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not check():
            await asyncio.sleep(0.0005)


@pytest.mark.parametrize("ask", [request, seeded], ids=["greedy", "seeded"])
@pytest.mark.parametrize("overlap", [False, True], ids=["step by step", "a step ahead"])
@pytest.mark.parametrize("begun_on", ["a decode worker", "an aggregated worker"])
def test_it_moves_with_at_most_one_step_of_stall(
    ask: Callable[[str, list[int], int], Request], overlap: bool, begun_on: str
) -> None:
    async def scene() -> None:
        house = House(step_seconds=steady, offload=lambda: inline, overlap=overlap, blocks=100)
        async with house.open():
            for name, role in (("p", P), ("a", D), ("b", D)):
                house.start(name, role)
            carrier = Carrier(house, ask("r", PROMPT, 40), ["a", "b"])
            aggregated = begun_on == "an aggregated worker"
            running = asyncio.create_task(
                carrier.aggregated("a") if aggregated else carrier.go("p")
            )
            await carrier.decoded(10)
            assert house.workers["a"].live.move("r")
            assert await running == expected(PROMPT, 40)
            assert [word for word in carrier.log if "mov" in word] == [
                "moving from a", "moved from a",
            ]  # fmt: skip
            assert house.workers["b"].engine.steps.recorded > 5, "b went on with it"
            gaps = [after - at for at, after in zip(carrier.at[1:], carrier.at[2:], strict=False)]
            assert max(gaps) <= 2 * STEP_S + 0.005, "one step of stall, and the last blocks' way"
            house.check_idle()

    run_virtual(scene())


Mishap = Callable[[House], Awaitable[None]]


async def taker_is_cancelled(house: House) -> None:
    house.workers["b"].decode.cancel("r")


async def taker_leaves(house: House) -> None:
    house.workers["b"].end()


async def ticket_is_released(house: House) -> None:
    (info,) = house.workers["a"].tickets().tickets
    house.workers["a"].desk.release(worker.ReleaseRequest(ticket_id=info.id, epoch=1))


async def lease_runs_out(house: House) -> None:
    (ticket,) = house.workers["a"].desk.tickets.live()
    ticket.ttl_s, ticket.expires_at = -1000.0, 0.0  # whoever renews it
    await asyncio.sleep(0.1)


async def higher_epoch_never_fetches(house: House) -> None:
    (info,) = house.workers["a"].tickets().tickets

    async def redeem() -> AsyncIterator[worker.FetchRequest]:
        yield worker.FetchRequest(
            redeem=worker.Redeem(
                ticket_id=info.id, epoch=2, kv_abi="sim", receiver="c/1", known_tokens=38
            )
        )
        await asyncio.sleep(1000.0)

    with pytest.raises(KvasirError):
        async for _ in house.workers["a"].desk.fetch(redeem()):
            pass


MISHAPS = [
    taker_is_cancelled,
    taker_leaves,
    ticket_is_released,
    lease_runs_out,
    higher_epoch_never_fetches,
]


@pytest.mark.parametrize("mishap", MISHAPS, ids=lambda mishap: mishap.__name__)
@pytest.mark.parametrize("frozen", [False, True], ids=["while it runs", "while it stands still"])
def test_whoever_does_not_take_it_the_sequence_goes_on_where_it_is(
    mishap: Mishap, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tickets, "EXPIRY_CHECK_S", 0.05)

    async def scene() -> None:
        house = House(step_seconds=steady, offload=lambda: inline)
        house.fabric.delay_s = 0.2
        async with house.open():
            _, a, _ = (house.start(name, role) for name, role in (("p", P), ("a", D), ("b", D)))
            carrier = Carrier(house, request("r", PROMPT, 60), ["a", "b"])
            running = asyncio.create_task(carrier.go("p"))
            await carrier.decoded(5)
            a.live.move("r")
            await until(lambda: moving(house, "a", TicketState.FETCHING))
            if frozen:
                await until(lambda: bool(a.engine.scheduler.held))
            emitted = len(carrier.output)
            await mishap(house)
            assert await running == expected(PROMPT, 60)
            assert carrier.moved == 0 and carrier.log.count("moving from a") == 1
            assert len(carrier.output) > emitted
            assert carrier.failures, "the taker was told"
            await asyncio.sleep(10.0)  # chunks that nobody wants any more drain
            house.check_idle()

    run_virtual(scene())


def test_a_ticket_taken_away_while_blocks_are_copied_inline_freezes_nobody() -> None:
    async def scene() -> None:
        house = House(step_seconds=steady, blocks=100)
        house.fabric.reaches = lambda address: False  # type: ignore[method-assign]
        async with house.open():
            _, a, _ = (house.start(name, role) for name, role in (("p", P), ("a", D), ("b", D)))
            carrier = Carrier(house, request("r", PROMPT, 60), ["a", "b"])
            running = asyncio.create_task(carrier.go("p"))
            await carrier.decoded(5)
            a.live.move("r")
            await until(lambda: moving(house, "a", TicketState.FETCHING))
            (fetch,) = a.desk._fetches.values()
            await until(lambda: bool(fetch._readers))
            await ticket_is_released(house)
            assert await running == expected(PROMPT, 60)
            assert carrier.moved == 0 and carrier.failures
            await asyncio.sleep(10.0)
            house.check_idle()

    run_virtual(scene())


def test_it_moves_on_and_back_again() -> None:
    async def scene() -> None:
        house = House(step_seconds=steady, offload=lambda: inline, blocks=100)
        async with house.open():
            for name, role in (("p", P), ("a", D), ("b", D)):
                house.start(name, role)
            carrier = Carrier(house, request("r", PROMPT, 80), ["a", "b"])
            running = asyncio.create_task(carrier.go("p"))
            for moves, name in enumerate("abab", 1):
                await carrier.decoded(10 * moves)
                assert house.workers[name].live.move("r")
                while carrier.moved < moves:
                    await asyncio.sleep(STEP_S)
            assert await running == expected(PROMPT, 80)
            assert carrier.moved == 4
            house.check_idle()

    run_virtual(scene())


def test_what_ends_while_it_is_fetched_ends_where_it_ran() -> None:
    async def scene() -> None:
        house = House(step_seconds=steady, offload=lambda: inline)
        house.fabric.delay_s = 0.5
        async with house.open():
            _, a, _ = (house.start(name, role) for name, role in (("p", P), ("a", D), ("b", D)))
            carrier = Carrier(house, request("r", PROMPT, 12), ["a", "b"])
            running = asyncio.create_task(carrier.go("p"))
            await carrier.decoded(8)
            a.live.move("r")
            assert await running == expected(PROMPT, 12)
            assert carrier.moved == 0 and carrier.log.count("moving from a") == 1
            await asyncio.sleep(10.0)
            house.check_idle()
            (ended,) = a.desk.tickets.ended()
            assert ended.state is TicketState.RELEASED and ended.epoch == 1, ended.story

    run_virtual(scene())


@pytest.mark.parametrize("frozen", [False, True])
def test_a_client_that_leaves_while_it_moves_frees_both_sides(frozen: bool) -> None:
    async def scene() -> None:
        house = House(step_seconds=steady, offload=lambda: inline)
        house.fabric.delay_s = 0.2
        async with house.open():
            _, a, _ = (house.start(name, role) for name, role in (("p", P), ("a", D), ("b", D)))
            carrier = Carrier(house, request("r", PROMPT, 60), ["a", "b"])
            running = asyncio.create_task(carrier.go("p"))
            await carrier.decoded(5)
            a.live.move("r")
            await until(lambda: moving(house, "a", TicketState.FETCHING))
            if frozen:
                await until(lambda: bool(a.engine.scheduler.held))
            running.cancel()
            await asyncio.wait({running})
            await asyncio.sleep(10.0)
            house.check_idle()

    run_virtual(scene())


def test_nothing_moves_that_does_not_decode_here() -> None:
    async def scene() -> None:
        async with House().open() as house:
            p, d = house.start("p", P), house.start("d", D)
            assert not d.live.move("r")
            carrier = Carrier(house, request("r", PROMPT, 12), ["d"])
            running = asyncio.create_task(carrier.go("p"))
            assert await running == expected(PROMPT, 12)
            assert not d.live.move("r") and not p.live.move("r")
            house.check_idle()

    run_virtual(scene())


def test_who_has_no_pages_for_what_came_meanwhile_does_not_take_it() -> None:
    async def scene() -> None:
        house = House(step_seconds=steady, offload=lambda: inline)
        house.fabric.delay_s = 0.5
        async with house.open():
            house.start("p", P)
            a = house.start("a", D)
            b = house.start("b", D)
            others = b.engine.pool.shards[0].allocate(64 - 12)  # it has 11 when it is offered
            carrier = Carrier(house, request("r", PROMPT, 60), ["a", "b"])
            running = asyncio.create_task(carrier.go("p"))
            await carrier.decoded(5)
            a.live.move("r")
            assert await running == expected(PROMPT, 60)
            assert carrier.moved == 0
            assert any("no pages" in error.message for error in carrier.failures)
            b.engine.pool.shards[0].release(others)
            await asyncio.sleep(10.0)
            house.check_idle()

    run_virtual(scene())


@pytest.mark.parametrize("begun_on", ["decode", "aggregated"])
def test_a_drain_moves_what_decodes_and_waits_for_the_rest(begun_on: str) -> None:
    async def scene() -> None:
        house = House(step_seconds=steady, offload=lambda: inline, blocks=200)
        async with house.open():
            for name, role in (("p", P), ("a", D), ("b", D)):
                house.start(name, role)
            a = house.workers["a"]
            carriers = [
                Carrier(house, request(f"r{i}", [i * 50, *PROMPT], 100), ["a", "b"])
                for i in range(5)
            ]
            running = [
                asyncio.create_task(
                    carrier.go("p") if begun_on == "decode" else carrier.aggregated("a")
                )
                for carrier in carriers
            ]
            for carrier in carriers[:4]:
                await carrier.decoded(5)
            running[4].cancel()
            began = asyncio.get_running_loop().time()
            assert await a.drain(60.0) == 0
            assert asyncio.get_running_loop().time() - began < 40 * STEP_S
            assert a.state == "draining" and a.num_busy == 0
            for i, task in enumerate(running[:4]):
                assert await task == expected([i * 50, *PROMPT], 100)
            assert [carrier.moved for carrier in carriers[:4]] == [1] * 4
            with pytest.raises(Unavailable, match="draining"):
                await Carrier(house, request("late", PROMPT, 3), ["a"]).aggregated("a")
            house.check_idle()

    run_virtual(scene())


def test_a_drain_offers_again_what_nobody_took_and_what_is_left_is_told_to_go_elsewhere() -> None:
    async def scene() -> None:
        house = House(step_seconds=steady, offload=lambda: inline, blocks=200)
        async with house.open():
            for name, role in (("p", P), ("a", D), ("b", D)):
                house.start(name, role)
            a, b = house.workers["a"], house.workers["b"]
            b.decode.draining = True  # it takes nothing
            carrier = Carrier(house, request("r", PROMPT, 300), ["a", "b"])
            running = asyncio.create_task(carrier.go("p"))
            await carrier.decoded(5)
            assert await a.drain(5.0) == 1
            assert carrier.log.count("moving from a") == 3, "at 0, 2 and 4 s"
            assert all("draining" in error.message for error in carrier.failures)
            b.decode.draining = False
            carrier.decoders[:] = ["b"]
            a.end()
            assert await running == expected(PROMPT, 300)
            assert "a is leaving" in carrier.failures[-1].message
            assert isinstance(carrier.failures[-1], Unavailable)
            house.check_idle()

    run_virtual(scene())


def test_what_is_still_being_fetched_when_a_drain_begins_moves_once_it_decodes() -> None:
    async def scene() -> None:
        house = House(step_seconds=steady, offload=lambda: inline, blocks=200)
        house.fabric.delay_s = 0.1
        async with house.open():
            for name, role in (("p", P), ("a", D), ("b", D)):
                house.start(name, role)
            a = house.workers["a"]
            carrier = Carrier(house, request("r", PROMPT, 100), ["a", "b"])
            running = asyncio.create_task(carrier.go("p"))
            await until(lambda: bool(a.engine.scheduler.reserved))
            assert await a.drain(60.0) == 0
            assert carrier.moved == 1 and len(carrier.output) < 50
            assert await running == expected(PROMPT, 100)
            house.check_idle()

    run_virtual(scene())


def test_a_drain_waits_for_open_tickets() -> None:
    async def scene() -> None:
        async with House(ttl_s=10.0).open() as house:
            p, d = house.start("p", P), house.start("d", D)
            what = request("r", PROMPT, 5)
            ticket, first = await handoff.prefill(p.prefill.prefill, what)
            draining = asyncio.create_task(p.drain(60.0))
            await asyncio.sleep(3.0)
            assert not draining.done()
            _, rest = await handoff.decode(d.decode.decode, what, ticket, first.token.id)
            assert [first.token.id, *rest] == expected(PROMPT, 5)
            assert await draining == 0
            house.check_idle()

    run_virtual(scene())


ACTIONS = st.lists(
    st.tuples(
        st.floats(0.0, 1.0),  # when it arrives
        st.integers(1, 60),  # prompt length
        st.integers(0, 2),  # prompt family
        st.integers(1, 60),  # tokens wanted
        st.sampled_from(["late", "early", "aggregated"]),
        st.lists(  # what happens meanwhile, and when
            st.tuples(
                st.floats(0.0, 1.0),
                st.sampled_from(["move", "cut", "untake", "expire", "leave"]),
            ),
            max_size=4,
        ),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40)
@given(ACTIONS, st.integers(40, 100), st.integers(1, 6), st.booleans(), st.booleans())
def test_sequences_move_at_any_time_and_no_token_is_lost_or_wrong(
    actions: list[tuple[float, int, int, int, str, list[tuple[float, str]]]],
    blocks: int,
    staging_blocks: int,
    overlap: bool,
    inline_too: bool,
) -> None:
    async def scene() -> None:
        house = House(
            blocks=blocks,
            ttl_s=4.0,
            staging_blocks=staging_blocks,
            overlap=overlap,
            inline_bytes=64 if inline_too else 0,
            step_seconds=lambda batch: 0.02,
        )
        house.fabric.delay_s = 0.01

        async def one(i: int, action: tuple[float, int, int, int, str, Any]) -> None:
            at, length, family, count, how, mishaps = action
            await asyncio.sleep(at)
            prompt = [family * 100 + k for k in range(length)]
            carrier = Carrier(house, request(str(i), prompt, count), ["a", "b"])
            running = asyncio.create_task(
                carrier.aggregated("a")
                if how == "aggregated"
                else carrier.go("p", early=how == "early")
            )
            disturbing = asyncio.create_task(disturb(carrier, str(i), running, mishaps))
            try:
                assert await running == expected(prompt, count)
            except asyncio.CancelledError:
                assert running.cancelled()
            finally:
                disturbing.cancel()

        async def disturb(
            carrier: Carrier, name: str, running: asyncio.Task[Any], mishaps: Any
        ) -> None:
            for pause, mishap in mishaps:
                await asyncio.sleep(pause)
                for giver in ("a", "b"):
                    desk = house.workers[giver].desk
                    tickets = [t for t in desk.tickets.live() if t.moving and t.request_id == name]
                    match mishap:
                        case "move":
                            house.workers[giver].live.move(name)
                        case "untake" if tickets:
                            house.workers["b" if giver == "a" else "a"].decode.cancel(name)
                        case "expire" if tickets:
                            tickets[0].expires_at = 0.0
                if mishap == "cut":
                    house.fabric.cut()
                if mishap == "leave":
                    running.cancel()

        async with house.open():
            for name, role in (("p", P), ("a", D), ("b", D)):
                house.start(name, role)
            async with asyncio.timeout(600), asyncio.TaskGroup() as group:
                for i, action in enumerate(actions):
                    group.create_task(one(i, action))
            await asyncio.sleep(20.0)  # leases and deadlines run out
            house.check_idle()

    run_virtual(scene())
