"""What every link between processes promises, over Gloo and over shared memory: bytes, deadlines,
deaths and goodbyes, and that nothing is left of one that is over."""

from __future__ import annotations

import asyncio
import gc
import signal

import pytest
import torch

from tests.workers.links import held, holds, joined, peer_process, returned, some_pages, transport
from workers.core.errors import TransferError
from workers.transfer.link import RECEIVER, SENDER, Link, Transport

SLOT = 1 << 15
NAMES = ["gloo", "shm"]
pytestmark = pytest.mark.parametrize("name", NAMES)


async def test_bytes_arrive_in_their_slots_with_several_under_way(name: str) -> None:
    before = held()
    sender, receiver = await joined(transport(name), 4 * SLOT)
    for size in (1, 777, SLOT):
        sent = torch.randint(0, 255, (4 * SLOT,), dtype=torch.uint8)
        sender.staging.copy_(sent)
        arrivals = [receiver.recv(slot * SLOT, size, size * 4 + slot) for slot in range(4)]
        await asyncio.gather(*(sender.send(i * SLOT, size, size * 4 + i) for i in (2, 0, 3, 1)))
        await asyncio.gather(*arrivals)
        for slot in range(4):
            part = slice(slot * SLOT, slot * SLOT + size)
            assert torch.equal(receiver.staging[part], sent[part])
    sender.close()
    await asyncio.wait_for(_failed(receiver), 5)
    assert receiver.failed == "the peer closed the pair"
    with pytest.raises(TransferError, match="closed"):
        await receiver.recv(0, 1, 99)
    del sender, receiver
    gc.collect()
    await returned((before[0] + (name == "gloo"), before[1] + 4 * (name == "gloo")))


async def test_what_an_end_holds_is_what_it_says(name: str) -> None:
    made = transport(name)
    before = held()
    sender, receiver = await joined(made, 4 * SLOT)
    arrivals = [receiver.recv(slot * SLOT, 9, slot) for slot in range(2)]
    await asyncio.gather(*(sender.send(slot * SLOT, 9, slot) for slot in range(2)), *arrivals)
    await holds(before, sender.threads + receiver.threads, sender.fds + receiver.fds)
    sender.close()
    receiver.close()
    del sender, receiver, arrivals
    gc.collect()
    await returned(before)


async def test_two_hundred_generations_leave_nothing_behind(name: str) -> None:
    made = transport(name)
    before, rss = held(), _rss()
    for generation in range(200):
        sender, receiver = await joined(made, 1 << 20)
        arrival = receiver.recv(0, 1 << 20, 1)
        await sender.send(0, 1 << 20, 1)
        await arrival
        pending = receiver.recv(0, 9, 2)
        (sender, receiver)[generation % 2].close()
        with pytest.raises(TransferError):
            await pending
        await asyncio.wait_for(_failed(sender), 5)
        await asyncio.wait_for(_failed(receiver), 5)
    del sender, receiver, arrival, pending
    gc.collect()
    await returned(before)
    assert _rss() - rss < 60 << 20, "200 generations have 400 MiB of staging"


async def test_a_chunk_that_does_not_come_fails_all_that_wait_with_it(name: str) -> None:
    made = transport(name, 0.5)
    before = held()
    sender, receiver = await joined(made, 4 * SLOT)
    arrivals = [receiver.recv(slot * SLOT, 10, slot) for slot in range(3)]
    await sender.send(0, 10, 0)
    await arrivals[0]
    for late in arrivals[1:]:
        with pytest.raises(TransferError):
            await late
    assert receiver.failed
    with pytest.raises(TransferError):
        await receiver.recv(0, 10, 4)
    await asyncio.wait_for(_failed(sender), 5)
    del sender, receiver, arrivals, late
    gc.collect()
    await returned(before)


async def test_a_peer_that_never_answers_or_answers_nonsense(name: str) -> None:
    made = transport(name, 0.5)
    before = held()
    alone = await made.offer(SENDER, some_pages(), SLOT)
    alone.drop()
    with pytest.raises(TransferError):
        await (await made.offer(SENDER, some_pages(), SLOT)).join(b"0/1\0nonsense")
    with pytest.raises(TransferError):
        await (await made.offer(RECEIVER, some_pages(), SLOT)).join(b"nonsense" * 3)
    del alone
    gc.collect()
    await returned(before)


async def test_a_peer_that_is_stopped_and_one_that_is_killed(name: str) -> None:
    """A stopped one fails at the deadline and holds nobody else up; a killed one is noticed long
    before it; a new generation works at once."""
    size = 32 << 20
    async with peer_process(name, size) as peer:
        link = await peer.joined(transport(name, 60.0))
        arrival = link.recv(0, size, 1)
        peer.tell("1")
        await arrival
        assert await peer.says() == "sent"
        assert link.staging[0] == 7 and link.staging[-1] == 7

        made = transport(name, 1.0)
        hasty = await peer.joined(made)
        peer.kill(signal.SIGSTOP)
        late = hasty.recv(0, 8, 1)
        await _works(made)
        with pytest.raises(TransferError):
            await asyncio.wait_for(late, 20)
        peer.kill(signal.SIGCONT)

        waiting = [link.recv(0, 8, 2), link.recv(8, 8, 3)]
        peer.kill()
        for arrival in waiting:
            with pytest.raises(TransferError):
                await asyncio.wait_for(arrival, 20)
        assert link.failed
    await _works(made)


async def _works(made: Transport) -> None:
    sender, receiver = await joined(made)
    arrival = receiver.recv(0, 9, 1)
    await sender.send(0, 9, 1)
    await arrival
    sender.close()
    receiver.close()


async def _failed(link: Link) -> None:
    while link.failed is None:
        await asyncio.sleep(0.005)


def _rss() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096
