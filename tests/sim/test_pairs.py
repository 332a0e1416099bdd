"""Pairs in virtual time: made when wanted, in the background, bounded, given up and made anew."""

from __future__ import annotations

import asyncio

import pytest

from tests.sim.replicas import Blocks, Net, Replica, two
from tests.sim.test_exchange import all_at_once, now, play
from workers.core.clock import VirtualClock
from workers.core.errors import TransferError
from workers.transfer.chunk import Turns
from workers.transfer.memory import MemoryFabric
from workers.transfer.quarantine import Quarantine
from workers.wire import worker_pb2 as worker


async def transport_of(receiver: Replica, sender: Replica, name: str) -> str:
    """How a fetch of eight blocks went; their bytes are right."""
    fetched = await receiver.take(sender.ticket(name, all_at_once(8)), range(20, 28))
    assert receiver.bytes_at(range(20, 28)) == sender.bytes_at(range(8))
    return fetched.transport


class Picky(MemoryFabric):
    """A transport of another name that reaches only some, and may be slow or unable to connect."""

    def __init__(self, name: str, reached: str = "", *, connect_s: float = 0.0) -> None:
        super().__init__()
        self.name = name
        self.reached = reached
        self.connect_s = connect_s
        self.broken = False
        self.offers = 0

    def reaches(self, address: str) -> bool:
        return address in self.reached

    async def offer(self, side, pages, num_bytes):  # type: ignore[no-untyped-def]
        self.offers += 1
        await asyncio.sleep(self.connect_s)
        if self.broken:
            raise TransferError("no cable")
        return await super().offer(side, pages, num_bytes)


def test_the_best_transport_that_reaches_the_sender_is_taken() -> None:
    async def scene() -> None:
        shared, network = Picky("shared", "near"), Picky("network", "near far")
        net = Net()
        receiver = Replica(net, "d", fabrics=[shared, network])
        for name, expected in (("near", "shared"), ("far", "network"), ("nowhere", "inline")):
            sender = Replica(net, name, fabrics=[shared, network])
            sender.fill()
            assert await transport_of(receiver, sender, "a") == expected
        assert receiver.receiver_pairs.quarantined() == [], "nobody failed"

    play(scene)


def test_a_transport_that_fails_gives_way_to_the_next() -> None:
    async def scene() -> None:
        shared, network = Picky("shared", "p"), Picky("network", "p")
        shared.broken = True
        net = Net()
        sender, receiver = two(net, fabrics=[shared, network])
        assert await transport_of(receiver, sender, "a") == "network"
        only_here = Picky("exotic", "q")
        other = Replica(net, "q", fabrics=[network])
        other.fill()
        network.reached = "p q"
        receiver = Replica(net, "e", fabrics=[only_here, network])
        assert await transport_of(receiver, other, "b") == "network", "the sender has no other"

    play(scene)


def test_nobody_waits_long_for_a_pair() -> None:
    """Blocks go inline while one is being made; once it is there it is used."""

    async def scene() -> None:
        slow = Picky("slow", "p", connect_s=2.0)
        sender, receiver = two(Net(), fabrics=[slow])
        began = now()
        assert await transport_of(receiver, sender, "a") == "inline"
        assert now() - began < 0.5
        assert await transport_of(receiver, sender, "b") == "inline"
        assert slow.offers == 1, "one attempt at a time"
        await asyncio.sleep(4)
        assert await transport_of(receiver, sender, "c") == "slow"

    play(scene)


def test_prewarmed_pairs_are_there_at_once_and_the_dead_do_no_harm() -> None:
    async def scene() -> None:
        net = Net()
        sender, receiver = two(net)
        other = Replica(net, "q")
        gone = Replica(net, "gone")
        del net.replicas["gone"]
        refs = [sender.ref, other.ref, gone.ref]
        assert await receiver.receiver_pairs.prewarm(refs) == 2
        assert {info.peer for info in receiver.receiver_pairs.report()} == {"p", "q", "gone"}
        assert receiver.receiver_pairs.quarantined() == ["gone"]
        assert await transport_of(receiver, sender, "a") == "memory"
        assert await receiver.receiver_pairs.prewarm(refs) == 2, "nothing is made twice"
        generations = [info.generation for info in receiver.receiver_pairs.report()]
        assert sorted(generations) == [0, 1, 2]

    play(scene)


def test_prewarming_ends_by_the_connect_timeout() -> None:
    async def scene() -> None:
        slow = Picky("slow", "p", connect_s=60.0)
        sender, receiver = two(Net(), fabrics=[slow])
        began = now()
        assert await receiver.receiver_pairs.prewarm([sender.ref]) == 0
        assert now() - began <= 5.0

    play(scene)


def test_a_failed_pair_is_made_anew_after_its_quarantine() -> None:
    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=0.1))
        sender, receiver = two(net)
        taking = asyncio.create_task(transport_of(receiver, sender, "a"))
        await asyncio.sleep(0.15)
        net.fabric.cut()
        await taking
        assert receiver.receiver_pairs.quarantined() == ["p"]
        assert await transport_of(receiver, sender, "b") == "inline"
        [info] = receiver.receiver_pairs.report()
        assert info.failures == 1 and 0 < info.quarantine_left_s <= 1.0
        await asyncio.sleep(1.1)
        assert await transport_of(receiver, sender, "c") == "memory"
        [info] = receiver.receiver_pairs.report()
        assert (info.generation, info.failures) == (2, 0), "a success starts clean"

    play(scene)


def test_a_pair_that_breaks_while_nobody_uses_it_is_simply_made_anew() -> None:
    async def scene() -> None:
        net = Net()
        sender, receiver = two(net)
        assert await transport_of(receiver, sender, "a") == "memory"
        await asyncio.sleep(0.1)
        net.fabric.cut()
        assert await transport_of(receiver, sender, "b") == "memory"
        assert receiver.receiver_pairs.quarantined() == []

    play(scene)


def test_quarantine_doubles_to_its_end_and_a_new_incarnation_starts_clean() -> None:
    async def scene() -> None:
        quarantine = Quarantine(VirtualClock())
        times = []
        for _ in range(7):
            quarantine.failed("p", "1")
            quarantine.failed("p", "1")  # of another fetch that began before
            times.append(quarantine.left_s("p", "1"))
            await asyncio.sleep(times[-1])
        assert times == [1, 2, 4, 8, 16, 30, 30]
        quarantine.failed("p", "1")
        assert quarantine.left_s("p", "2") == 0
        quarantine.failed("p", "2")
        assert quarantine.left_s("p", "2") == 1 and quarantine.inside() == [("p", "2")]
        quarantine.succeeded("p", "2")
        assert quarantine.failures("p", "2") == 0 and quarantine.inside() == []

    play(scene)


def test_a_restarted_sender_is_paired_with_at_once() -> None:
    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=0.1))
        sender, receiver = two(net)
        taking = asyncio.create_task(transport_of(receiver, sender, "a"))
        await asyncio.sleep(0.15)
        net.fabric.cut()
        await taking
        reborn = Replica(net, "p", incarnation="2")
        reborn.fill(2)
        assert await transport_of(receiver, reborn, "b") == "memory"
        [info] = receiver.receiver_pairs.report()
        assert not info.failed and info.failures == 0, "nothing is left of the older one"

    play(scene)


def test_the_least_recently_used_make_room_on_both_sides() -> None:
    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=0.1))
        receiver = Replica(net, "d", max_pairs=2)
        senders = [Replica(net, f"p{i}") for i in range(3)]
        for sender in senders:
            sender.fill()
            await transport_of(receiver, sender, "a")
        assert [info.peer for info in receiver.receiver_pairs.report()] == ["p1", "p2"]
        [closed] = senders[0].sender_pairs.report()
        assert closed.failed, "its other end knows"

        sender = Replica(net, "p", max_pairs=2)
        sender.fill()
        receivers = [Replica(net, f"d{i}") for i in range(3)]
        for i, receiver in enumerate(receivers):
            await transport_of(receiver, sender, f"b{i}")
        assert [info.peer for info in sender.sender_pairs.report()] == ["d1", "d2"]
        assert await transport_of(receivers[0], sender, "c") == "memory"
        assert receivers[0].receiver_pairs.quarantined() == [], "to make room is no failure"

    play(scene)


def test_pairs_in_use_do_not_make_room() -> None:
    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=1.0))
        sender = Replica(net, "p", max_pairs=1)
        sender.fill()
        receivers = [Replica(net, f"d{i}", max_pairs=1) for i in range(3)]
        running = []
        for i, receiver in enumerate(receivers):
            running.append(asyncio.create_task(transport_of(receiver, sender, str(i))))
            await asyncio.sleep(0.1)
        assert len(sender.sender_pairs.report()) == 3
        assert [await task for task in running] == ["memory"] * 3
        late = Replica(net, "d3")
        await transport_of(late, sender, "late")
        assert [info.peer for info in sender.sender_pairs.report()] == ["d3"]

    play(scene)


def test_many_who_ask_at_once_get_no_more_pairs_than_may_be() -> None:
    async def scene() -> None:
        net = Net()
        sender = Replica(net, "p", max_pairs=4)
        receivers = [Replica(net, f"d{i}") for i in range(20)]
        await asyncio.gather(*(r.receiver_pairs.prewarm([sender.ref]) for r in receivers))
        assert len(sender.sender_pairs.report()) == 4

    play(scene)


def test_a_pair_that_was_never_completed_is_none_to_all_who_ask() -> None:
    async def scene() -> None:
        net = Net()
        sender, receiver = two(net)
        request = worker.ConnectRequest(
            receiver=receiver.ref,
            generation=1,
            backend="memory",
            rendezvous=[b"nobody"],
            slot_bytes=64,
            slots=2,
        )
        await sender.sender_pairs.accept(request)
        find = sender.sender_pairs.find
        found = await asyncio.gather(find("d/1", 1), find("d/1", 1))
        assert found[0] is None and found[1] is None
        assert await find("d/1", 1) is None and await find("x/1", 7) is None
        assert await transport_of(receiver, sender, "a") == "memory"

    play(scene)


def test_both_ends_keep_to_the_smaller_sizes() -> None:
    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=0.1))
        sender = Replica(net, "p", slots=1, slot_blocks=3)
        receiver = Replica(net, "d", slots=4, slot_blocks=2)
        sender.fill()
        assert await transport_of(receiver, sender, "a") == "memory"
        [info], [other] = sender.sender_pairs.report(), receiver.receiver_pairs.report()
        assert info.staging_bytes == other.staging_bytes == 2 * sender.pages.block_bytes
        assert info.chunks == other.chunks == 4
        assert info.num_bytes == other.num_bytes == 8 * sender.pages.block_bytes

    play(scene)


def test_a_replica_of_other_ranks_is_told_apart_by_its_lanes() -> None:
    async def scene() -> None:
        net = Net()
        sender, receiver = Replica(net, "p", ranks=2), Replica(net, "d", ranks=4)
        sender.fill()
        assert await transport_of(receiver, sender, "a") == "memory"
        assert [info.lanes for info in sender.sender_pairs.report()] == [4]
        sender.ref.tensor_ranks = 1  # it says what is not so
        receiver = Replica(net, "e", ranks=4)
        assert await transport_of(receiver, sender, "b") in ("memory", "inline")
        bad = worker.ConnectRequest(receiver=receiver.ref, generation=9, backend="memory")
        bad.sender_shard = 3
        with pytest.raises(TransferError, match="no shard 3"):
            await sender.sender_pairs.accept(bad)
        bad.sender_shard, bad.backend = 0, "carrier pigeon"
        with pytest.raises(TransferError, match="no carrier pigeon transport here, only memory"):
            await sender.sender_pairs.accept(bad)

    play(scene)


def test_closing_a_worker_closes_what_is_under_way() -> None:
    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=1.0))
        sender, receiver = two(net)
        source = Blocks(list(range(8)), 4)
        taking = asyncio.create_task(receiver.take(sender.ticket("a", source), range(20, 28)))
        await asyncio.sleep(0.5)
        receiver.receiver_pairs.close()
        await receiver.receiver.close()
        with pytest.raises(TransferError):
            await taking
        sender.sender_pairs.close()
        assert not sender.sender_pairs.report()
        assert all(not info.transport for info in receiver.receiver_pairs.report())

    play(scene)


def test_turns_come_in_order_and_void_ones_are_passed_over() -> None:
    async def scene() -> None:
        turns, order = Turns(), []

        async def take(seq: int) -> None:
            await turns.wait(seq)
            order.append(seq)
            turns.over(seq)

        tasks = [asyncio.create_task(take(seq)) for seq in (5, 3, 1)]
        await asyncio.sleep(0)
        turns.over(4)
        await asyncio.sleep(1)
        assert order == [1]
        turns.over(2)
        await asyncio.wait(tasks)
        assert order == [1, 3, 5]
        with pytest.raises(TransferError, match="second time"):
            await turns.wait(3)
        last = asyncio.create_task(turns.wait(9))
        await asyncio.sleep(0)
        turns.end("cut")
        with pytest.raises(TransferError, match="cut"):
            await last

    play(scene)
