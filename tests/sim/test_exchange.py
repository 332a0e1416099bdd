"""The exchange in virtual time, without engines: what is sent arrives, whatever happens to pairs,
streams and those who wait; and it costs no more than it must."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.sim.replicas import Blocks, Copies, Net, Replica, two
from workers.core.clock import run_virtual
from workers.core.errors import CorruptKV, TicketError, TransferError
from workers.transfer.memory import Delivery, MemoryFabric
from workers.transfer.offers import chunk_blocks
from workers.wire import worker_pb2 as worker

GO_ONLY = pytest.mark.parametrize("posts_first", [True, False], ids=["posts", "go"])


def play(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def to_its_end() -> None:
        await scene()
        await asyncio.sleep(60)  # drains, deadlines
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"left behind: {left}"

    run_virtual(to_its_end())


def now() -> float:
    return asyncio.get_running_loop().time()


def all_at_once(count: int, start: int = 0) -> Blocks:
    return Blocks(list(range(start, start + count)), count)


def unused(*replicas: Replica) -> bool:
    """No pair of these has anything under way, and none was lost."""
    infos = [i for r in replicas for i in (*r.sender_pairs.report(), *r.receiver_pairs.report())]
    return bool(infos) and all(not info.offers_under_way and not info.failed for info in infos)


@GO_ONLY
@pytest.mark.parametrize("checksums", [True, False])
def test_what_arrives_is_what_was_sent(posts_first: bool, checksums: bool) -> None:
    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=0.01, posts_first=posts_first))
        sender, receiver = two(net, checksums=checksums)
        fetched = await receiver.take(sender.ticket("a", all_at_once(9)), range(20, 29))
        assert receiver.bytes_at(range(20, 29)) == sender.bytes_at(range(9))
        assert (fetched.transport, fetched.num_tokens, fetched.token_ids) == ("memory", 36, (7,))
        assert fetched.num_bytes == 9 * sender.pages.block_bytes and fetched.refetched == 0
        assert "inline" not in net.said and net.said.count("offer") == 5
        assert ("go" in net.said) is not posts_first
        assert unused(sender, receiver)

    play(scene)


def test_what_the_receiver_caches_is_not_offered() -> None:
    async def scene() -> None:
        net = Net()
        sender, receiver = two(net)
        before = receiver.bytes_at(range(20, 26))
        ticket = sender.ticket("a", all_at_once(9))
        fetched = await receiver.take(ticket, range(20, 29), first=6)
        assert receiver.bytes_at(range(20, 26)) == before
        assert receiver.bytes_at(range(26, 29)) == sender.bytes_at(range(6, 9))
        assert fetched.num_bytes == 3 * sender.pages.block_bytes
        nothing = await receiver.take(sender.ticket("b", all_at_once(9)), range(20, 29), first=9)
        assert nothing.num_bytes == 0 and nothing.num_tokens == 36

    play(scene)


@GO_ONLY
def test_gather_wire_and_scatter_overlap(posts_first: bool) -> None:
    """Eight chunks, a second each on the wire and half a second for each copy."""

    async def scene() -> None:
        seconds = {}
        for slots in (1, 2):
            net = Net(MemoryFabric(delay_s=1.0, posts_first=posts_first))
            sender, receiver = two(net, slots=slots, slot_blocks=1, offload=Copies(0.5))
            began = now()
            await receiver.take(sender.ticket("a", all_at_once(8)), range(20, 28))
            seconds[slots] = now() - began
            assert receiver.bytes_at(range(20, 28)) == sender.bytes_at(range(8))
        assert seconds[1] == pytest.approx(8 * 2.0)
        assert seconds[2] == pytest.approx(8 * 1.0 + 2 * 0.5), "the wire never rests"

    play(scene)


@GO_ONLY
def test_tickets_that_share_a_pair_do_not_mix(posts_first: bool) -> None:
    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=0.1, posts_first=posts_first))
        sender, receiver = two(net, offload=Copies(0.03))
        tickets = [sender.ticket(str(i), all_at_once(7, i * 8)) for i in range(6)]
        await asyncio.gather(
            *(receiver.take(t, range(i * 8 + 1, i * 8 + 8)) for i, t in enumerate(tickets))
        )
        for i in range(6):
            at, came_from = range(i * 8 + 1, i * 8 + 8), range(i * 8, i * 8 + 7)
            assert receiver.bytes_at(at) == sender.bytes_at(came_from)
        [info] = receiver.receiver_pairs.report()
        assert info.chunks == 24, "one pair carried all of it"
        assert unused(sender, receiver)

    play(scene)


RANKS = [(a, b, h) for h in (1, 2, 4) for a in (1, 2, 4) for b in (1, 2, 4)]


@pytest.mark.parametrize(("senders", "receivers", "kv_heads"), RANKS)
def test_heads_find_their_ranks(senders: int, receivers: int, kv_heads: int) -> None:
    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=0.01))
        sender = Replica(net, "p", ranks=senders, kv_heads=kv_heads)
        receiver = Replica(net, "d", ranks=receivers, kv_heads=kv_heads)
        sender.fill()
        fetched = await receiver.take(sender.ticket("a", all_at_once(5)), range(20, 25))
        assert fetched.transport == "memory"
        assert receiver.bytes_at(range(20, 25)) == sender.bytes_at(range(5))
        for rank in receiver.ranks:  # each holds its heads itself, also where others do too
            staging = rank.new_staging(5 * rank.block_bytes)
            rank.gather(range(20, 25), staging)
            assert any(staging)
        assert unused(sender, receiver)

    play(scene)


def test_early_blocks_travel_while_later_ones_are_computed() -> None:
    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=0.5))
        sender, receiver = two(net)
        source = Blocks(list(range(8)), 2)
        taking = asyncio.create_task(receiver.take(sender.ticket("a", source), range(20, 28)))
        for ready in (4, 6):
            await asyncio.sleep(1.0)
            assert receiver.bytes_at([20, 21]) == sender.bytes_at([0, 1])
            assert "complete" not in net.said
            source.grow(ready)
        await asyncio.sleep(1.0)
        source.grow(8)
        fetched = await taking
        assert receiver.bytes_at(range(20, 28)) == sender.bytes_at(range(8))
        assert fetched.seconds == pytest.approx(3.5)
        assert fetched.exposed_s == pytest.approx(0.5), "only the last range"
        assert fetched.exposed_bytes == fetched.num_bytes / 4

    play(scene)


def test_all_of_a_late_transfer_is_exposed() -> None:
    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=0.5))
        sender, receiver = two(net)
        fetched = await receiver.take(sender.ticket("a", all_at_once(8)), range(20, 28))
        assert fetched.exposed_s == fetched.seconds == pytest.approx(2.0)
        assert fetched.exposed_bytes == fetched.num_bytes

    play(scene)


def test_a_sequence_that_grew_gets_more_pages_or_the_fetch_fails() -> None:
    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=0.1))
        sender, receiver = two(net)
        ticket = sender.ticket("a", Blocks(list(range(8)), 8, tokens=[7, 8, 9]))
        ticket.num_blocks = 4  # what was known when it was opened
        fetched = await receiver.take(ticket, range(20, 28))
        assert fetched.num_tokens == 32 and fetched.token_ids == (7, 8, 9)
        again = sender.ticket("b", all_at_once(8))
        with pytest.raises(TransferError, match="no pages"):
            await receiver.take(again, range(20, 26))
        await asyncio.sleep(1)
        await receiver.take(again, range(20, 28), epoch=2)
        assert unused(sender, receiver), "the pair did not pay for it"

    play(scene)


def test_a_sequence_that_ends_where_it_is_ends_the_fetch() -> None:
    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=0.1))
        sender, receiver = two(net)
        source = Blocks(list(range(8)), 4)
        taking = asyncio.create_task(receiver.take(sender.ticket("a", source), range(20, 28)))
        await asyncio.sleep(0.05)
        source.end(TicketError("finished there"))
        with pytest.raises(TicketError, match="finished there"):
            await taking
        await asyncio.sleep(10)
        assert unused(sender, receiver)

    play(scene)


@GO_ONLY
@pytest.mark.parametrize("moment", range(16))
def test_who_leaves_takes_nobody_along_and_costs_no_pair(posts_first: bool, moment: int) -> None:
    """Cancelled at any time: pages are left alone at once, what was under way drains, and others
    on the same pair do not notice."""

    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=0.1, posts_first=posts_first))
        sender, receiver = two(net, offload=Copies(0.03))
        first = asyncio.create_task(receiver.take(sender.ticket("a", all_at_once(9)), range(1, 10)))
        other = asyncio.create_task(
            receiver.take(sender.ticket("b", all_at_once(9, 10)), range(11, 20))
        )
        await asyncio.sleep(moment * 0.04)
        first.cancel()
        await asyncio.wait({first})
        left = receiver.bytes_at(range(1, 10))
        await other
        assert receiver.bytes_at(range(11, 20)) == sender.bytes_at(range(10, 19))
        await asyncio.sleep(1)
        assert first.cancelled() is (sender.tickets["a"][0].state == "open")
        assert receiver.bytes_at(range(1, 10)) == left, "written after it was given back"
        assert unused(sender, receiver)
        await receiver.take(sender.ticket("c", all_at_once(9)), range(1, 10))
        [info] = receiver.receiver_pairs.report()
        assert info.generation == 1, "the same pair as before"

    play(scene)


@GO_ONLY
@pytest.mark.parametrize("moment", range(10))
def test_a_ticket_taken_away_drains_and_costs_no_pair(posts_first: bool, moment: int) -> None:
    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=0.1, posts_first=posts_first))
        copies = Copies(0.03)
        sender, receiver = two(net, offload=copies)
        taking = asyncio.create_task(
            receiver.take(sender.ticket("a", all_at_once(20)), range(20, 40))
        )
        await asyncio.sleep(0.01 + moment * 0.05)
        sender.stop("a")
        [fetch] = sender.fetches
        began = now()
        await fetch.quiet.wait()
        assert now() - began <= 0.03, "pages are free after the gather that ran"
        with pytest.raises(TicketError, match="release"):
            await taking
        await fetch.done.wait()
        assert unused(sender, receiver)
        await receiver.take(sender.ticket("b", all_at_once(9)), range(1, 10))
        assert receiver.receiver_pairs.report()[0].generation == 1

    play(scene)


@GO_ONLY
@pytest.mark.parametrize("moment", range(1, 12, 2))
def test_a_broken_pair_costs_speed_and_nothing_else(posts_first: bool, moment: int) -> None:
    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=0.1, posts_first=posts_first))
        sender, receiver = two(net, offload=Copies(0.03))
        tickets = [sender.ticket(str(i), all_at_once(9, i * 10)) for i in range(3)]
        taking = [
            asyncio.create_task(receiver.take(ticket, range(i * 10 + 1, i * 10 + 10)))
            for i, ticket in enumerate(tickets)
        ]
        await asyncio.sleep(moment * 0.05)
        net.fabric.cut()
        began = now()
        for i, task in enumerate(taking):
            await task
            assert receiver.bytes_at(range(i * 10 + 1, i * 10 + 10)) == sender.bytes_at(
                range(i * 10, i * 10 + 9)
            )
        assert now() - began < 2.0, "noticed by both sides, not by a deadline"
        assert receiver.receiver_pairs.quarantined() == ["p"]

    play(scene)


class Faults:
    """Disturbs the deliveries named by seq, once each."""

    def __init__(self, **by_kind: set[int]) -> None:
        self.by_kind = by_kind
        self.struck: list[tuple[str, int]] = []

    async def __call__(self, delivery: Delivery) -> None:
        for kind, seqs in self.by_kind.items():
            if delivery.seq in seqs:
                seqs.remove(delivery.seq)
                self.struck.append((kind, delivery.seq))
                match kind:
                    case "lose":
                        delivery.lost = True
                    case "corrupt":
                        delivery.data[5] ^= 0xFF
                    case "hang":
                        await asyncio.Event().wait()
                    case "late":
                        await asyncio.sleep(0.5)
                    case "cut":
                        delivery.link.fail("cut")


@GO_ONLY
@pytest.mark.parametrize("kind", ["lose", "hang", "late", "cut", "corrupt"])
@pytest.mark.parametrize("seq", [1, 3, 5])
def test_a_disturbed_delivery_changes_no_byte(posts_first: bool, kind: str, seq: int) -> None:
    async def scene() -> None:
        fault = Faults(**{kind: {seq}})
        net = Net(MemoryFabric(delay_s=0.1, posts_first=posts_first, fault=fault))
        sender, receiver = two(net, offload=Copies(0.01))
        fetched = await receiver.take(sender.ticket("a", all_at_once(9)), range(20, 29))
        assert fault.struck == [(kind, seq)]
        assert receiver.bytes_at(range(20, 29)) == sender.bytes_at(range(9))
        assert (fetched.refetched > 0) is (kind != "late")
        lost = kind in ("lose", "hang", "cut")
        assert bool(receiver.receiver_pairs.quarantined()) is lost
        assert receiver.receiver.counts.mismatched == (1 if kind == "corrupt" else 0)
        assert fetched.seconds < 12.0

    play(scene)


def test_wrong_twice_is_never_served() -> None:
    def flip(response: worker.FetchResponse) -> None:
        if response.HasField("inline"):
            response.inline.data = bytes([response.inline.data[0] ^ 1]) + response.inline.data[1:]

    async def scene() -> None:
        net = Net(MemoryFabric(fault=Faults(corrupt={2})), flip)
        sender, receiver = two(net)
        before = receiver.bytes_at(range(20, 28))
        ticket = sender.ticket("a", all_at_once(8))
        with pytest.raises(CorruptKV, match=r"blocks \[2\] .* twice"):
            await receiver.take(ticket, range(20, 28))
        counts = receiver.receiver.counts
        assert (counts.mismatched, counts.refetched, counts.gave_up) == (2, 1, 1)
        block = sender.pages.block_bytes
        after = receiver.bytes_at(range(20, 28))
        assert after[2 * block : 3 * block] == before[2 * block : 3 * block], "never written"
        await asyncio.sleep(0.1)
        assert sender.tickets["a"][0].state == "open", "the router decides what becomes of it"
        assert unused(sender, receiver)

    play(scene)


@GO_ONLY
@pytest.mark.parametrize("moment", range(1, 10, 2))
def test_a_stream_that_breaks_retires_the_pair_if_anything_was_under_way(
    posts_first: bool, moment: int
) -> None:
    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=0.1, posts_first=posts_first))
        sender, receiver = two(net, offload=Copies(0.03))
        source = Blocks(list(range(12)), 4)
        taking = asyncio.create_task(receiver.take(sender.ticket("a", source), range(20, 32)))
        await asyncio.sleep(moment * 0.05)
        under_way = any(info.offers_under_way for info in sender.sender_pairs.report())
        began = now()
        net.cut_streams()
        with pytest.raises(TransferError, match="reset"):
            await taking
        assert now() - began <= 0.03, "pages are left alone as soon as no copy runs"
        left = receiver.bytes_at(range(20, 32))
        await asyncio.sleep(0.5)
        [info] = sender.sender_pairs.report()
        assert bool(info.failed) is under_way
        assert receiver.bytes_at(range(20, 32)) == left
        source.grow(12)
        await receiver.take(sender.ticket("b", source), range(20, 32))
        assert receiver.bytes_at(range(20, 32)) == sender.bytes_at(range(12))

    play(scene)


def test_a_sender_that_is_silent_is_given_up_within_three_seconds() -> None:
    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=0.1))
        sender, receiver = two(net)
        source = Blocks(list(range(8)), 4)
        taking = asyncio.create_task(receiver.take(sender.ticket("a", source), range(20, 28)))
        await asyncio.sleep(1.5)
        net.freeze()
        began = now()
        with pytest.raises(TransferError, match="silent"):
            await taking
        assert now() - began <= 3.0

    play(scene)


@pytest.mark.parametrize("what", ["first_block", "num_blocks", "num_bytes", "generation"])
def test_an_offer_out_of_place_is_refused(what: str) -> None:
    def tamper(response: worker.FetchResponse) -> None:
        if response.HasField("offer") and response.offer.first_block == 2:
            setattr(response.offer, what, getattr(response.offer, what) + 1)

    async def scene() -> None:
        net = Net(MemoryFabric(delay_s=0.1), tamper)
        sender, receiver = two(net)
        with pytest.raises(TransferError):
            await receiver.take(sender.ticket("a", all_at_once(8)), range(20, 28))
        await asyncio.sleep(10)
        assert unused(sender, receiver), "the pair did not pay for it"
        net.tamper = lambda _: None
        await receiver.take(sender.ticket("b", all_at_once(8)), range(20, 28))
        assert receiver.bytes_at(range(20, 28)) == sender.bytes_at(range(8))

    play(scene)


def test_what_is_small_goes_inline_at_once() -> None:
    async def scene() -> None:
        net = Net()
        sender, receiver = two(net, inline_bytes=4 * 32)
        fetched = await receiver.take(sender.ticket("a", all_at_once(4)), range(20, 24))
        assert fetched.transport == "inline" and "offer" not in net.said
        assert not receiver.receiver_pairs.report(), "nor is a pair made for it"
        assert receiver.bytes_at(range(20, 24)) == sender.bytes_at(range(4))
        fetched = await receiver.take(sender.ticket("b", all_at_once(5)), range(20, 25))
        assert fetched.transport == "memory"

    play(scene)


@pytest.mark.parametrize(
    ("megabytes", "chunks"),
    [(0.5, [0.5]), (1, [1]), (3, [1, 1, 1]), (6, [1.5] * 4), (16, [4] * 4), (80, [8] * 10)],
)
def test_a_short_range_is_cut_so_that_it_overlaps(megabytes: float, chunks: list[float]) -> None:
    """Blocks of 256 KiB, two slots of 8 MiB."""
    blocks = int(4 * megabytes)
    size = chunk_blocks(blocks, 1 << 18, slots=2, blocks_per_slot=32)
    assert [min(size, blocks - first) / 4 for first in range(0, blocks, size)] == chunks
