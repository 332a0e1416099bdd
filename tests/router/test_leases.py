"""Tickets of requests under way are renewed together, and not a moment longer."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import ValidationError

from router.flight import Binding
from router.leases import RENEW_EVERY_S, Leases
from router.replica import Replica
from tests.router.fleet import house, request, token_at, until
from workers.config import WorkerConfig
from workers.wire import common_pb2 as common


def binding(replica: Replica, ticket: str) -> Binding:
    return Binding(common.Ticket(id=ticket), replica)


def nothing() -> None:
    """Nobody waits for a lost ticket."""


async def test_all_tickets_of_one_worker_are_renewed_while_held() -> None:
    async with house("prefill-1", "prefill-2") as inside:
        leases = Leases(nothing, every_s=0.02)
        renewing = asyncio.create_task(leases.run())
        one, two = inside.pool.get("prefill-1"), inside.pool.get("prefill-2")
        inside.fleet["prefill-1"].tickets |= {"a": 0, "b": 0}
        inside.fleet["prefill-2"].tickets["c"] = 0
        held = [binding(one, "a"), binding(one, "b"), binding(two, "c")]
        with leases.hold(held[0]), leases.hold(held[1]), leases.hold(held[2]):
            await until(lambda: {"a", "b"} <= set(inside.fleet["prefill-1"].renewed))
            await until(lambda: "c" in inside.fleet["prefill-2"].renewed)
            await inside.fleet["prefill-2"].kill()  # a renewal that fails stops no other one
            seen = len(inside.fleet["prefill-1"].renewed)
            await until(lambda: len(inside.fleet["prefill-1"].renewed) > seen)
            assert not any(each.lost for each in held)
        assert leases.num_held == 0
        renewing.cancel()
        inside.fleet["prefill-1"].tickets.clear()


async def test_a_request_holds_its_ticket_until_decode_has_it() -> None:
    async with house("prefill-1", "decode-1") as inside:
        decode = inside.fleet["decode-1"]
        decode.script.extend(["wait before", "wait after 0"])
        first = inside.dispatcher.run(request())
        await anext(first)
        waiting = asyncio.ensure_future(anext(first))
        await until(lambda: decode.active == 1)
        assert inside.dispatcher.tickets_held == 1
        second = inside.dispatcher.run(request())
        await anext(second)
        admitted = asyncio.ensure_future(anext(second))
        await until(lambda: decode.active == 2 and inside.dispatcher.tickets_held == 1)
        for task in (waiting, admitted):
            task.cancel()
        await asyncio.gather(waiting, admitted, return_exceptions=True)
        await first.aclose()
        await second.aclose()
        await inside.fleet.quiet()
        assert inside.fleet["prefill-1"].released


async def test_a_ticket_that_its_worker_has_forgotten_is_lost() -> None:
    async with house("prefill-1") as inside:
        told = asyncio.Event()
        leases = Leases(told.set, every_s=0.02)
        renewing = asyncio.create_task(leases.run())
        inside.fleet["prefill-1"].tickets["kept"] = 0
        replica = inside.pool.get("prefill-1")
        kept, gone = binding(replica, "kept"), binding(replica, "gone")
        with leases.hold(kept), leases.hold(gone):
            await told.wait()
            assert (kept.alive, gone.alive, leases.num_held) == (True, False, 1)
            asked = inside.fleet["prefill-1"].renewed
            await until(lambda: asked.count("kept") > 3)
            assert asked.count("gone") == 1
        assert leases.num_held == 0
        renewing.cancel()
        inside.fleet["prefill-1"].tickets.clear()


async def test_prefill_starts_again_while_nobody_decodes_when_the_ticket_is_lost() -> None:
    async with house("prefill-1", "decode-1") as inside:
        prefill, decode = inside.fleet["prefill-1"], inside.fleet["decode-1"]
        await decode.kill()
        await until(lambda: not inside.pool.count_up("decode"))
        answer = asyncio.create_task(inside.tokens(request(max_tokens=4)))
        await until(lambda: bool(prefill.tickets))
        prefill.tickets.clear()
        await until(lambda: len(prefill.calls) > 1)  # no decode worker is there yet
        await decode.start()
        tokens = [token.id for emission in await answer for token in emission.tokens]
        assert tokens == [token_at(position) for position in range(10, 14)]


def test_a_ticket_outlives_a_renewal_that_fails() -> None:
    fields = {"replica": "p-0", "pool": "p", "role": "prefill", "model": "m"}
    WorkerConfig(**fields, ticket_ttl_s=3 * RENEW_EVERY_S)
    for short in (1.0, 3 * RENEW_EVERY_S - 0.1, float("inf")):
        with pytest.raises(ValidationError, match="ticket_ttl_s"):
            WorkerConfig(**fields, ticket_ttl_s=short)
