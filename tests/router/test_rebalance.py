"""Who is relieved of a running sequence, and that it goes where there is room."""

from __future__ import annotations

import asyncio

import pytest

from router.rebalance import overloaded, rebalance
from router.replica import Replica
from tests.router.fleet import house, request, until
from tests.router.test_dispatch import check_output
from tests.router.test_placement import replica


def decode(name: str, kv_tokens: int, *, waiting: int = 0, kv_abi: str = "x") -> Replica:
    made = replica(name, "decode", kv_abi=kv_abi)
    made.load.blocks_total, made.load.blocks_used, made.load.waiting = 100, 50, waiting
    made.load.kv_tokens = kv_tokens
    made.report(_ready(made))
    return made


def _ready(made: Replica):
    made.load.state, made.load.replica.incarnation = "ready", made.incarnation
    return made.load


@pytest.mark.parametrize(
    ("other", "relieved"),
    [
        (decode("idle", 400), True),
        (decode("half", 500), False),
        (decode("alien", 0, kv_abi="y"), False),
        (replica("prefill"), False),
    ],
)
def test_a_full_one_is_relieved_where_another_has_less_than_half(
    other: Replica, relieved: bool
) -> None:
    full, calm = decode("full", 1000, waiting=1), decode("calm", 1000)
    assert overloaded([full, other]) is (full if relieved else None)
    assert overloaded([calm, other]) is None
    calm.load.blocks_used = 96
    assert overloaded([calm, other]) is (calm if relieved else None)


async def test_the_last_one_moves_while_it_is_full() -> None:
    async with house("prefill-1", "decode-1", "decode-2") as inside:
        full, idle = inside.fleet["decode-1"], inside.fleet["decode-2"]
        full.hold_at = 20
        idle.state = "draining"
        await until(lambda: not inside.pool.get("decode-2").up)
        asked = [request(max_tokens=30) for _ in range(2)]
        asking = [asyncio.create_task(inside.tokens(asked[0]))]
        await until(lambda: asked[0].id in full.live)
        asking.append(asyncio.create_task(inside.tokens(asked[1])))
        await until(lambda: asked[1].id in full.live)
        full.waiting, idle.state = 1, "ready"
        working = asyncio.create_task(rebalance(inside.pool, inside.dispatcher, 0.1))
        await until(lambda: bool(idle.calls))
        working.cancel()
        full.hold_at = None
        assert idle.calls[0].sequence.request_id == asked[1].id
        for one, answer in zip(asked, asking, strict=True):
            check_output(one, await answer)
        assert len(inside.fleet["prefill-1"].calls) == 2
        await inside.fleet.quiet()
