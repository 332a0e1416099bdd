"""What a worker says of itself, and what it does not take from others; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest

from tests import handoff
from tests.sim.carrier import Carrier
from tests.sim.house import House, expected, request
from workers.core.clock import run_virtual
from workers.core.errors import InvalidRequest, KvasirError, TicketError, TransferError
from workers.core.waits import inline
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.worker import Worker

P, D = common.ROLE_PREFILL, common.ROLE_DECODE
PROMPT = list(range(37))


async def report(made: Worker) -> worker.LoadReport:
    return await anext(aiter(made.watch(1.0)))


def sample(made: Worker, name: str, **labels: str) -> float:
    value = made.meter.registry.get_sample_value(f"kvasir_worker_{name}", labels)
    assert value is not None, name
    return value


def test_transfers_pairs_and_moves_are_reported_and_counted() -> None:
    async def scene() -> None:
        async with House(offload=lambda: inline).open() as house:
            _, a, b = (house.start(name, role) for name, role in (("p", P), ("a", D), ("b", D)))
            warm = Carrier(house, request("warm", [1, 2, 3], 3), ["a"])
            await warm.go("p")  # makes the pair
            watching = aiter(a.watch(0.002))
            assert len((await anext(watching)).transfers) == 0, "none since it began to watch"
            carrier = Carrier(house, request("r", PROMPT, 100), ["a", "b"])
            running = asyncio.create_task(carrier.go("p"))
            await carrier.decoded(3)
            while not (seen := await anext(watching)).transfers:
                pass
            [transfer] = seen.transfers
            assert (transfer.sender, transfer.transport) == ("p", "memory")
            assert transfer.num_bytes == 10 * a.engine.runner.pages.block_bytes
            assert transfer.seconds > 0
            assert (seen.step_tokens, seen.kv_bytes_per_token) == (16, 8)
            assert len((await anext(watching)).transfers) == 0, "each is told once"
            await a.drain(0.0)
            assert await running == expected(PROMPT, 100)

            pairs = [(i.peer, i.sending, i.transport, i.failed) for i in a.tickets().pairs]
            assert pairs == [("b", True, "memory", ""), ("p", False, "memory", "")]
            assert sample(a, "moved_out_total") == sample(b, "moved_in_total") == 1
            assert sample(a, "drains_total") == 1
            assert sample(a, "fetches_total", transport="memory") >= 1
            assert sample(a, "pairs") == 2 and sample(a, "pairs_failed") == 0
            assert sample(a, "pair_staging_bytes") > 0
            assert sample(a, "transfer_exposed_seconds_count") == 2

            house.fabric.cut()
            assert (await report(a)).quarantined == []
            again = Carrier(house, request("again", [5, *PROMPT], 30), ["b"])
            assert await again.go("p") == expected([5, *PROMPT], 30)
            house.check_idle()

    run_virtual(scene())


def test_a_worker_is_starting_until_it_is_ready_and_never_after_it_drains() -> None:
    async def scene() -> None:
        async with House().open() as house:
            made = house.start("w", D)
            made.ready = False
            assert (await report(made)).state == "starting"
            made.ready = True
            assert (await report(made)).state == "ready"
            await made.drain(0.0)
            assert (await report(made)).state == "draining"

    run_virtual(scene())


def requests(*messages: worker.FetchRequest) -> AsyncIterator[worker.FetchRequest]:
    async def stream() -> AsyncIterator[worker.FetchRequest]:
        for message in messages:
            yield message
        await asyncio.sleep(1000.0)

    return stream()


NONSENSE: dict[str, tuple[dict[str, object], str]] = {
    "another kind of KV": ({"kv_abi": "other"}, "KV of 'other'"),
    "no such ticket": ({"ticket_id": "none"}, "never here"),
    "an epoch that is none": ({"epoch": 0}, "not above 0"),
    "blocks beyond the tokens": ({"first_block": 1 << 31}, "is none of"),
    "tokens that nobody sampled": ({"known_tokens": 1000}, "speaks of 1000"),
    "no token at all": ({"known_tokens": 0, "first_block": 0}, "speaks of 0"),
}


@pytest.mark.parametrize("change", NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("live", [False, True], ids=["prefilled", "decoding"])
def test_a_redeem_that_cannot_be_right_is_refused_and_costs_nothing(
    change: tuple[dict[str, object], str], live: bool
) -> None:
    async def scene() -> None:
        async with House(ttl_s=6.0).open() as house:
            p, d = house.start("p", P), house.start("d", D)
            carrier = Carrier(house, request("r", PROMPT, 150), ["d"])
            if live:
                running = asyncio.create_task(carrier.go("p"))
                await carrier.decoded(3)
                d.live.move("r")
                await carrier.said("moving from d")
            else:
                await handoff.prefill(p.prefill.prefill, request("r", PROMPT, 150))
            made = d if live else p
            [info] = made.tickets().tickets
            fields = {
                "ticket_id": info.id,
                "epoch": 1,
                "kv_abi": "sim",
                "receiver": "x/1",
                "known_tokens": 38,
            }
            redeem = worker.Redeem(**(fields | change[0]))  # type: ignore[arg-type]
            with pytest.raises(TicketError, match=change[1]):
                async for _ in made.desk.fetch(requests(worker.FetchRequest(redeem=redeem))):
                    pass
            assert made.tickets().tickets[0].state == "open"
            if live:
                assert await running == expected(PROMPT, 150)
            else:
                await asyncio.sleep(7.0)
            house.check_idle()

    run_virtual(scene())


@pytest.mark.parametrize("first", [None, worker.FetchRequest(received=worker.Received())])
def test_a_fetch_that_does_not_begin_with_redeem_ends(first: worker.FetchRequest | None) -> None:
    async def scene() -> None:
        async with House().open() as house:
            p = house.start("p", P)
            if first is not None:
                with pytest.raises(TransferError, match="begins with Redeem"):
                    await anext(aiter(p.desk.fetch(requests(first))))
                return
            with pytest.raises(TransferError, match="no answer"):
                async for response in p.desk.fetch(requests()):
                    assert response.HasField("heartbeat")

    run_virtual(scene())


class Liar:
    """A sender that says what it likes."""

    def __init__(self, *responses: worker.FetchResponse) -> None:
        self.responses = responses

    async def connect(self, request: worker.ConnectRequest) -> worker.ConnectResponse:
        raise TransferError("no")

    async def fetch(
        self, requests: AsyncIterator[worker.FetchRequest]
    ) -> AsyncIterator[worker.FetchResponse]:
        for response in self.responses:
            yield response
        await asyncio.sleep(1000.0)


def blocks(first: int, count: int) -> worker.FetchResponse:
    data = bytes(32 * count)
    return worker.FetchResponse(
        inline=worker.InlineBlocks(first_block=first, num_blocks=count, data=data)
    )


def complete(num_tokens: int, token_ids: Iterable[int] = ()) -> worker.FetchResponse:
    return worker.FetchResponse(
        complete=worker.Complete(num_tokens=num_tokens, token_ids=token_ids)
    )


REDEEMED = worker.FetchResponse(redeemed=worker.Redeemed())
LIES: dict[str, list[worker.FetchResponse]] = {
    "nothing": [REDEEMED],
    "too little": [complete(37), blocks(0, 5), REDEEMED],
    "fewer tokens": [complete(30), blocks(0, 8), REDEEMED],
    "more tokens than it may have": [complete(37 + 400, [1] * 400), blocks(0, 110), REDEEMED],
    "tokens that are none": [complete(38, [5_000_000]), blocks(0, 10), REDEEMED],
    "blocks without end": [blocks(i, 1) for i in range(200)],
    "blocks before those asked for": [blocks(0, 1), complete(37), blocks(0, 10), REDEEMED],
}


@pytest.mark.parametrize("lies", LIES.values(), ids=LIES)
def test_a_sender_that_says_nonsense_ends_the_fetch_and_no_page_is_kept(
    lies: list[worker.FetchResponse],
) -> None:
    async def scene() -> None:
        async with House(blocks=80).open() as house:
            d = house.start("d", D)
            house.start("p", P)
            if lies is LIES["blocks before those asked for"]:
                await Carrier(house, request("cached", PROMPT, 2), ["d"]).go("p")
            house.peers["liar"] = Liar(*lies)
            ticket = common.Ticket(
                id="t",
                prefill=common.ReplicaRef(id="liar", incarnation="1", address="liar"),
                kv_abi="sim",
                num_tokens=37,
                num_blocks=10,
            )
            what = request("r", PROMPT, 60)
            with pytest.raises((TransferError, TicketError)):
                await handoff.decode(d.decode.decode, what, ticket, 7)
            await asyncio.sleep(10.0)
            house.check_idle()
            with pytest.raises((InvalidRequest, KvasirError)):
                await handoff.decode(d.decode.decode, request("s", [1, 2], 3), ticket, 7)

    run_virtual(scene())
