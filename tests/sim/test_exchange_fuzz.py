"""The exchange under random mishaps: never a wrong byte, never a write into pages given back, and
in the end nothing is under way."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.house import SlowThreads
from tests.sim.replicas import Blocks, Net, Replica
from tests.sim.test_exchange import play
from workers.core.errors import KvasirError, TicketError
from workers.transfer.memory import Delivery, MemoryFabric

MISHAPS = ("none", "none", "leave", "stop", "cut pair", "cut streams", "end", "rebind")


def disturbed(draw: random.Random, share: float) -> Any:
    async def fault(delivery: Delivery) -> None:
        if draw.random() >= share:
            return
        match draw.choice(("late", "lose", "hang", "corrupt", "fail")):
            case "late":
                await asyncio.sleep(draw.uniform(0, 0.5))
            case "lose":
                delivery.lost = True
            case "hang":
                await asyncio.sleep(1000)
            case "corrupt":
                delivery.data[draw.randrange(len(delivery.data))] ^= 1
            case "fail":
                delivery.link.fail("fault")

    return fault


async def fetches(net: Net, draw: random.Random, count: int) -> None:
    """So many tickets at random times, each with its mishap; checks what they leave."""
    kv_heads = draw.choice((1, 2, 4))
    sizes: list[dict[str, Any]] = [
        {"slots": draw.randint(1, 3), "slot_blocks": draw.randint(1, 4)} for _ in range(3)
    ]
    offload = SlowThreads()

    def replica(name: str, size: dict[str, Any]) -> Replica:
        ranks = draw.choice((1, 2))
        return Replica(
            net, name, ranks=ranks, kv_heads=kv_heads, offload=offload, blocks=200, **size
        )

    sender = replica("p", sizes[0])
    sender.fill()
    receivers = [replica(f"d{i}", sizes[i + 1]) for i in range(2)]

    async def one(i: int) -> None:
        mishap, length = draw.choice(MISHAPS), draw.randint(1, 12)
        cached = draw.randint(0, length)
        source = Blocks(list(range(i * 14, i * 14 + length)), draw.choice((length, cached)))
        ticket, at = sender.ticket(str(i), source), range(i * 14, i * 14 + length)
        await asyncio.sleep(draw.uniform(0, 1))
        receiver = receivers[i % 2]
        epochs = iter(range(1, 4))

        async def take(receiver: Replica) -> None:
            first = draw.choice((0, 0, cached))
            try:
                await receiver.take(ticket, at, epoch=next(epochs), first=first)
            except (KvasirError, asyncio.CancelledError):
                left = receiver.bytes_at(at)
                await asyncio.sleep(20)
                assert receiver.bytes_at(at) == left, "written after it was given back"
            else:
                assert receiver.bytes_at(at[first:]) == sender.bytes_at(source.pages[first:])

        taking = asyncio.create_task(take(receiver))
        for ready in range(source.ready, length + 1):
            await asyncio.sleep(draw.uniform(0, 0.2))
            source.grow(ready)
        await asyncio.sleep(draw.uniform(0, 0.6))
        match mishap:
            case "leave":
                taking.cancel()
            case "stop":
                sender.stop(str(i))
            case "cut pair":
                net.fabric.cut()
            case "cut streams":
                net.cut_streams()
            case "end":
                source.end(TicketError("finished there"))
            case "rebind":
                sender.stop(str(i))
                await asyncio.sleep(0.5)
                await take(receivers[1 - i % 2])
        await taking

    async with asyncio.TaskGroup() as tasks:
        for i in range(count):
            tasks.create_task(one(i))
    await asyncio.sleep(60)
    for made in (sender, *receivers):
        for info in (*made.sender_pairs.report(), *made.receiver_pairs.report()):
            assert not info.offers_under_way, info
    # Nothing that happened before is in the way of anybody now.
    net.fabric.fault = disturbed(draw, 0.0)
    for i, receiver in enumerate(receivers):
        source = Blocks(list(range(180, 190)), 10)
        fetched = await receiver.take(sender.ticket(f"last {i}", source), range(180, 190))
        assert fetched.transport == "memory" and fetched.refetched == 0
        assert receiver.bytes_at(range(180, 190)) == sender.bytes_at(range(180, 190))


@pytest.mark.parametrize("posts_first", [True, False], ids=["posts", "go"])
@settings(max_examples=8)
@given(st.integers(0, 1 << 32), st.sampled_from((0.0, 0.05, 0.3)))
def test_no_mishap_changes_a_byte_or_stays_behind(
    posts_first: bool, seed: int, share: float
) -> None:
    draw = random.Random(seed)

    async def scene() -> None:
        fabric = MemoryFabric(delay_s=0.05, posts_first=posts_first, fault=disturbed(draw, share))
        await fetches(Net(fabric), draw, 8)

    play(scene)
