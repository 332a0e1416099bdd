"""Routers that tell each other what they gave to whom, in virtual time over a line that loses and
delays: every moment is checked."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator

import pytest

from router.replica import Assignment, Replica
from router.sharing.blocks import MOST_BLOCKS, ToldIndex
from router.sharing.channel import ChannelLost
from router.sharing.foreign import Foreign, Load
from router.sharing.peers import SILENT_S, Peers
from router.sharing.sharing import EVERY_S, SETTLE_S, WHOLE_EVERY_S, Sharing
from workers.core.clock import VirtualClock, run_virtual
from workers.core.events import EventKind, KVEvent
from workers.core.roles import RoleName
from workers.wire import common_pb2 as common
from workers.wire import router_pb2 as wire
from workers.wire import worker_pb2 as worker
from workers.wire.codec import role_to_wire
from workers.wire.redis_keys import ReplicaRecord

REPORT_S = 0.5  # between two reports of a worker


def replica(name: str = "prefill-0", role: RoleName = "prefill") -> Replica:
    record = ReplicaRecord(
        id=name, incarnation="1", address="", pool=role, role=role, model="", kv_abi="",
        block_size=4, context_length=512, kv_tokens=1024,
    )  # fmt: skip
    return Replica(record, None)


def report(name: str, load: Load, incarnation: str = "1") -> worker.LoadReport:
    return worker.LoadReport(
        replica=common.ReplicaRef(id=name, incarnation=incarnation),
        role=role_to_wire("prefill"),
        state="ready",
        waiting_tokens=load.pending_tokens,
        kv_tokens=load.kv_tokens,
        running=load.seqs,
        blocks_total=64,
    )


def seen(one: Replica) -> Load:
    return Load(one.pending_tokens, one.kv_tokens, one.num_seqs)


# what counts


def test_without_anybody_who_tells_the_report_counts() -> None:
    foreign = Foreign()
    foreign.report(Load(100, 200, 3))
    assert (foreign.pending_tokens, foreign.kv_tokens, foreign.seqs) == (100, 200, 3)


def test_what_the_report_holds_already_counts_once_when_it_is_told() -> None:
    foreign = Foreign()
    foreign.report(Load(100, 100, 1))
    foreign.tell(Load(100, 100, 1), settled=False)
    assert foreign.seqs == 1
    foreign.tell(Load(0, 0, 0), settled=True)  # and it is over before the next report
    assert foreign.seqs == 0


def test_what_was_decided_after_the_report_counts_beside_those_who_tell_nothing() -> None:
    foreign = Foreign()
    foreign.report(Load(100, 100, 1))
    foreign.tell(Load(50, 50, 1), settled=True)
    assert (foreign.pending_tokens, foreign.seqs) == (150, 2)


def test_when_one_falls_silent_the_report_counts_again() -> None:
    foreign = Foreign()
    foreign.tell(Load(100, 100, 1), settled=True)
    foreign.report(Load(80, 80, 1))
    assert foreign.pending_tokens == 100
    foreign.unsay(Load())
    assert foreign.pending_tokens == 80


def test_the_sums_of_peers_are_those_of_their_last_words() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        peers, last, now = Peers(), {}, 0.0
        for number in range(60):
            now += rng.random() * 0.3
            peers.silent(now)
            name = rng.choice("abc")
            lives = [(f"p-{n}", rng.choice("12")) for n in range(3)]
            rows = {life: Load(rng.randrange(3), rng.randrange(3), 0) for life in lives}
            late = rng.random() < 0.1
            peers.hear(name, 0 if late else number, rows, whole=rng.random() < 0.5, now=now)
            last[name] = now
            peers.check_integrity()
            assert {n for n, _ in peers} >= {n for n, at in last.items() if at == now}
            assert all(now - peer.heard_at < SILENT_S for _, peer in peers)


def test_an_older_message_changes_nothing() -> None:
    peers, life = Peers(), ("p", "1")
    peers.hear("a", 2, {life: Load(5, 5, 1)}, whole=True, now=0.0)
    assert peers.hear("a", 1, {life: Load(9, 9, 1)}, whole=True, now=0.1) == set()
    assert peers.told(life) == Load(5, 5, 1)


# in virtual time


class Air:
    """What a channel does at its worst, but for the order: it delays, and loses."""

    def __init__(self, rng: random.Random, lost: float = 0.0, delay_s: float = 0.03) -> None:
        self._rng = rng
        self.lost = lost
        self.delay_s = delay_s
        self.said = 0
        self.rows = 0
        self.away = False
        self._ears: set[asyncio.Queue[bytes]] = set()

    async def say(self, message: bytes) -> None:
        await asyncio.sleep(self._rng.random() * self.delay_s)
        if self.away:
            raise ChannelLost("away")
        self.said += 1
        for ear in self._ears:
            if self._rng.random() >= self.lost:
                ear.put_nowait(message)

    async def listen(self, silence_s: float) -> AsyncGenerator[bytes]:
        ear: asyncio.Queue[bytes] = asyncio.Queue()
        self._ears.add(ear)
        try:
            while True:
                async with asyncio.timeout(silence_s):
                    message = await ear.get()
                await asyncio.sleep(self._rng.random() * self.delay_s)
                yield message
        except TimeoutError:
            raise ChannelLost("silent") from None
        finally:
            self._ears.discard(ear)


class Router:
    """One router's eyes on one worker. One that does not tell has no Sharing."""

    def __init__(self, air: Air | None) -> None:
        self.replica = replica()
        self.held: list[Assignment] = []
        self.index = ToldIndex(VirtualClock())
        self.sharing = Sharing(air, VirtualClock(), self.index) if air is not None else None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self.sharing is not None:
            self._task = asyncio.create_task(self.sharing.run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def change(self, rng: random.Random) -> None:
        """It gives the worker something, or something goes on or ends."""
        if not self.held or rng.random() < 0.5:
            tokens = rng.randrange(1, 1000)
            self.held.append(self.replica.assignments.add(tokens, tokens))
        elif rng.random() < 0.5:
            one = rng.choice(self.held)
            one.update(pending_tokens=one.pending_tokens // 2, kv_tokens=one.kv_tokens + 1)
        else:
            self.replica.assignments.remove(self.held.pop(rng.randrange(len(self.held))))

    @property
    def own(self) -> Load:
        held = self.replica.assignments
        return Load(held.pending_tokens, held.kv_tokens, held.seqs)

    def hear_worker(self, load: Load) -> None:
        message = report(self.replica.id, load)
        self.replica.report(message)
        if self.sharing is not None:
            self.sharing.reported(self.replica, message)

    def check(self) -> None:
        """Never below what was told, in no kind."""
        if self.sharing is not None:
            told = self.sharing.peers.told((self.replica.id, "1"))
            assert told == self.replica.foreign.told
            for counted, mine, theirs in zip(seen(self.replica), self.own, told, strict=True):
                assert counted >= mine + theirs
            self.sharing.peers.check_integrity()


def truth(routers: list[Router]) -> Load:
    total = Load()
    for one in routers:
        total = total.plus(one.own)
    return total


async def worker_reports(routers: list[Router], rng: random.Random) -> None:
    """To each router in its own rhythm."""
    due = {one: rng.random() * REPORT_S for one in routers}
    while True:
        await asyncio.sleep(0.01)
        now = asyncio.get_running_loop().time()
        for one in routers:
            if now >= due[one]:
                due[one] = now + REPORT_S
                one.hear_worker(truth(routers))
                one.check()


@pytest.mark.parametrize("quiet", [0, 1], ids=["all tell", "one tells nothing"])
def test_estimates_are_never_below_what_was_told_and_end_at_the_truth(quiet: int) -> None:
    async def main(seed: int) -> None:
        rng = random.Random(seed)
        air = Air(rng, lost=0.1)
        routers = [Router(air) for _ in range(3)] + [Router(None) for _ in range(quiet)]
        for one in routers:
            one.hear_worker(Load())
            one.start()
        reports = asyncio.create_task(worker_reports(routers, rng))
        heard = 0
        for _ in range(200):
            await asyncio.sleep(rng.expovariate(50))
            rng.choice(routers).change(rng)
            for one in routers:
                one.check()
                heard += one.sharing is not None and len(one.sharing.peers) == 2
        assert heard > 100, "they heard of each other"
        air.lost = 0.0
        await asyncio.sleep(WHOLE_EVERY_S + REPORT_S + 1.0)
        for one in routers:
            assert seen(one.replica) == truth(routers)
        for one in routers:
            await one.stop()
        reports.cancel()
        await asyncio.wait([reports])

    for seed in range(5):
        run_virtual(main(seed))


async def _pair(air: Air) -> tuple[Router, Router]:
    """Two that know each other, and a worker that both have met."""
    pair = Router(air), Router(air)
    for one in pair:
        one.hear_worker(Load())
        one.start()
    await asyncio.sleep(WHOLE_EVERY_S)
    assert all(len(one.sharing.peers) == 1 for one in pair)
    return pair


def test_a_decision_is_seen_within_a_message_and_a_newcomer_hears_all_at_once() -> None:
    async def main() -> None:
        air = Air(random.Random(1), delay_s=0.001)
        one, other = await _pair(air)
        one.replica.assignments.add(100, 120)
        await asyncio.sleep(EVERY_S + 0.003)
        assert seen(other.replica) == Load(100, 120, 1)
        third = Router(air)
        third.hear_worker(Load())
        third.start()
        await asyncio.sleep(2 * EVERY_S + 0.003)
        assert seen(third.replica) == Load(100, 120, 1)
        for router in (one, other, third):
            await router.stop()

    run_virtual(main())


def test_one_that_hears_nobody_speaks_once_a_second() -> None:
    async def main() -> None:
        air = Air(random.Random(1), delay_s=0.001)
        one = Router(air)
        one.hear_worker(Load())
        one.start()
        await asyncio.sleep(WHOLE_EVERY_S / 2)
        before = air.said
        for _ in range(100):
            one.replica.assignments.add(10, 12)
            await asyncio.sleep(0.02)
        assert 1 <= air.said - before <= 3
        other = Router(air)
        other.hear_worker(Load())
        other.start()
        await asyncio.sleep(2 * EVERY_S + 0.003)
        assert seen(other.replica) == Load(1000, 1200, 100)
        await one.stop()
        await other.stop()

    run_virtual(main())


def test_growing_answers_alone_are_told_once_a_second() -> None:
    async def main() -> None:
        air = Air(random.Random(1), delay_s=0.001)
        one, other = await _pair(air)
        held = one.replica.assignments.add(0, 4000)
        await asyncio.sleep(WHOLE_EVERY_S)
        before = air.said
        for _ in range(100):
            held.update(kv_tokens=held.kv_tokens + 1)
            await asyncio.sleep(0.02)
        assert air.said - before <= 2 * 3, "the whole ones of both"
        assert abs(other.replica.kv_tokens - held.kv_tokens) <= 100
        await one.stop()
        await other.stop()

    run_virtual(main())


def test_a_router_that_dies_counts_for_three_seconds_at_most_one_that_leaves_no_more() -> None:
    async def main() -> None:
        air = Air(random.Random(1))
        one, other = await _pair(air)
        third = Router(air)
        third.hear_worker(Load())
        third.start()
        one.replica.assignments.add(100, 100)
        third.replica.assignments.add(7, 7)
        await asyncio.sleep(WHOLE_EVERY_S)
        assert other.replica.pending_tokens == 107
        air_of_the_dead, one.sharing._line = one.sharing._line, Air(random.Random(2))
        await asyncio.sleep(SILENT_S - WHOLE_EVERY_S - 0.1)  # its last word may be a second old
        assert other.replica.pending_tokens == 107
        await asyncio.sleep(WHOLE_EVERY_S + 0.2)
        assert other.replica.pending_tokens == 7, "its sequences end with it"
        await third.stop()
        await asyncio.sleep(0.1)
        assert other.replica.pending_tokens == 0
        one.sharing._line = air_of_the_dead
        await one.stop()
        await other.stop()

    run_virtual(main())


def test_with_the_channel_away_reports_count_and_later_words_again() -> None:
    async def main() -> None:
        rng = random.Random(1)
        air = Air(rng)
        one, other = await _pair(air)
        routers = [one, other]
        reports = asyncio.create_task(worker_reports(routers, rng))
        air.away = True
        held = one.replica.assignments.add(100, 100)
        await asyncio.sleep(SILENT_S + 1.0)
        assert not len(other.sharing.peers)
        assert seen(other.replica) == Load(100, 100, 1), "as the worker says"
        air.away = False
        await asyncio.sleep(2.0)
        assert len(other.sharing.peers) == 1
        one.replica.assignments.remove(held)
        await asyncio.sleep(0.3)
        assert seen(other.replica) == Load()
        reports.cancel()
        await asyncio.wait([reports])
        await one.stop()
        await other.stop()

    run_virtual(main())


def test_what_an_older_life_was_given_does_not_count() -> None:
    async def main() -> None:
        air = Air(random.Random(1))
        one, other = await _pair(air)
        one.replica.assignments.add(100, 100)
        await asyncio.sleep(0.3)
        assert other.replica.pending_tokens == 100
        message = report(other.replica.id, Load(), incarnation="2")
        other.replica.report(message)
        other.sharing.reported(other.replica, message)
        assert other.replica.pending_tokens == 0
        await one.stop()
        await other.stop()

    run_virtual(main())


def block(number: int) -> bytes:
    return number.to_bytes(16, "little")


def test_what_one_router_expects_all_expect_and_nobody_repeats_it() -> None:
    async def main() -> None:
        air = Air(random.Random(1), delay_s=0.001)
        one, other = await _pair(air)
        prompt = [block(n) for n in range(5)]
        one.index.expect("prefill-0", prompt[:4])
        await asyncio.sleep(2 * EVERY_S)
        assert other.index.match(prompt) == {"prefill-0": 4}
        said = air.said
        one.index.expect("prefill-0", prompt[:3])  # which is no news
        one.index.expect("decode-7", prompt)  # which nobody else has met
        other.index.apply("prefill-0", [KVEvent(EventKind.STORED, tuple(prompt[:4]))])
        await asyncio.sleep(3 * EVERY_S)
        assert air.said - said <= 3, "one more, and the whole ones"
        assert other.index.match(prompt) == {"prefill-0": 4}
        assert other.index.honesty.confirmed == 4
        await one.stop()
        await other.stop()

    run_virtual(main())


def test_with_nobody_to_tell_the_newest_blocks_are_kept() -> None:
    async def main() -> None:
        index = ToldIndex(VirtualClock())
        half = MOST_BLOCKS // 2 + 1
        prompts = [[block(start + n) for n in range(half)] for start in (0, half, 2 * half)]
        for prompt in prompts:
            index.expect("p", prompt)
        assert index.take_untold() == [("p", prompts[-1])]
        assert index.take_untold() == []
        index.expect("q", [block(n) for n in range(2 * MOST_BLOCKS)])
        assert [len(blocks) for _, blocks in index.take_untold()] == [MOST_BLOCKS]

    run_virtual(main())


def test_garbage_is_not_heard() -> None:
    async def main() -> None:
        one = Router(Air(random.Random(1)))
        half_an_id = wire.ExpectedBlocks(replica="prefill-0", block_ids=b"1234")
        garbled = wire.RouterNews(router="x", number=1, expected=[half_an_id])
        for garbage in (b"", b"\xff\xff", b"{}", garbled.SerializeToString()):
            one.sharing.hear(garbage)
        assert not len(one.sharing.peers)

    run_virtual(main())


def test_settling_takes_longer_than_telling() -> None:
    assert SETTLE_S >= 2 * EVERY_S
