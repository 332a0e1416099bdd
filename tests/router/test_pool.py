"""Who is up: Watch streams say so, not leases."""

from __future__ import annotations

import asyncio

import pytest

from router.pool import Pool
from router.replica import Replica, ReplicaState
from router.worker_client import WorkerClient, WorkerFailed
from tests.router.fleet import HASTY, LIMITS, Fleet, house, until
from workers.wire import worker_pb2 as worker


class Heard:
    """A PoolListener that remembers."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def reported(self, replica: Replica, load: worker.LoadReport) -> None:
        entry = ("reported", replica.incarnation)
        if self.said[-1:] != [entry]:
            self.said.append(entry)

    def lost(self, replica: Replica) -> None:
        self.said.append(("lost", replica.incarnation))

    def forgotten(self, replica: Replica) -> None:
        self.said.append(("forgotten", replica.incarnation))


async def test_down_and_up_again_with_a_new_incarnation() -> None:
    fleet, heard = Fleet(), Heard()
    fake = await fleet.add("decode-1", "decode")
    async with Pool(LIMITS.worker_silence_s, [heard]) as pool:
        pool.sync(fleet.records())
        await until(lambda: pool.count_up("decode") == 1)
        first = fake.incarnation
        await fake.kill()
        await until(lambda: pool.count_up("decode") == 0)
        pool.check_integrity()
        await fake.start()
        await until(lambda: pool.count_up("decode") == 1)
        assert pool.get("decode-1").incarnation == fake.incarnation != first
        assert heard.said[:2] == [("reported", first), ("lost", first)]
        assert heard.said[-1] == ("reported", fake.incarnation)
        pool.check_integrity()
    await fleet.close()


async def test_silence_is_death() -> None:
    async with house("decode-1", limits=HASTY) as inside:
        inside.fleet["decode-1"].silent = True
        await until(lambda: not inside.pool.get("decode-1").alive)
        assert "silent" in inside.pool.get("decode-1").tell()
        inside.fleet["decode-1"].silent = False
        await until(lambda: inside.pool.get("decode-1").up)


async def test_role_and_draining_come_from_the_reports() -> None:
    async with house("decode-1") as inside:
        fake = inside.fleet["decode-1"]
        fake.state = "draining"
        await until(lambda: inside.pool.get("decode-1").state is ReplicaState.DRAINING)
        assert inside.pool.count_up("decode") == 0
        fake.state, fake.role = "ready", "prefill"
        await until(lambda: inside.pool.count_up("prefill") == 1)


async def test_forgotten_only_when_lease_and_watch_are_both_gone() -> None:
    async with house("decode-1", "decode-2") as inside:
        pool, record = inside.pool, inside.fleet["decode-2"].record
        pool.sync([record])
        assert b'replica_up{replica="decode-1",role="decode"} 1.0' in inside.metrics.render()
        assert pool.get("decode-1") is not None  # its Watch runs
        await inside.fleet["decode-2"].kill()
        await until(lambda: not pool.get("decode-2").alive)
        pool.sync([record])
        assert pool.get("decode-2") is not None  # its lease runs
        await inside.fleet["decode-1"].kill()
        await until(lambda: pool.get("decode-1").state is ReplicaState.DOWN)
        pool.redis_lost()
        assert pool.get("decode-1") is not None  # nobody is forgotten while Redis is away
        pool.sync([record])  # its Watch may be calling again just now: then at the next sync
        while pool.get("decode-1") is not None:
            await asyncio.sleep(0.01)
            pool.sync([record])
        shown = inside.metrics.render()
        assert b'replica="decode-1"' not in shown and b'replica="decode-2"' in shown


async def test_a_replica_that_moved_is_met_at_its_new_address() -> None:
    async with house("decode-1") as inside:
        fake = inside.fleet["decode-1"]
        await fake.kill()
        fake.port = 0
        await fake.start()
        inside.pool.sync([fake.record])
        await until(lambda: inside.pool.get("decode-1").up)
        assert inside.pool.get("decode-1").incarnation == fake.incarnation


async def test_an_address_taken_by_another_replica_is_down() -> None:
    async with house("decode-1") as inside:
        inside.fleet["decode-1"].name = "decode-9"
        await until(lambda: not inside.pool.get("decode-1").alive)
        assert "decode-9" in inside.pool.get("decode-1").tell()


async def test_load_is_ours_at_once_and_theirs_by_report() -> None:
    async with house("prefill-1") as inside:
        replica = inside.pool.get("prefill-1")
        load = inside.fleet["prefill-1"].report()
        with replica.assigned(100, 120) as ours:
            assert replica.pending_tokens == 100
            load.waiting_tokens, load.running, load.kv_tokens = 130, 2, 300
            replica.report(load)  # 100 of these are ours: not counted twice
            assert (replica.pending_tokens, replica.num_seqs, replica.kv_tokens) == (130, 2, 300)
            ours.update(pending_tokens=40)
            assert replica.pending_tokens == 70
        assert (replica.pending_tokens, replica.num_seqs, replica.kv_tokens) == (30, 1, 180)


async def test_states_follow_the_table() -> None:
    fleet = Fleet()
    fake = await fleet.add("prefill-1", "prefill")
    client = WorkerClient("prefill-1", fake.record.address)
    replica = Replica(fake.record, client)
    load = fake.report()
    replica.report(load)
    load.state = "starting"
    with pytest.raises(WorkerFailed, match="says 'starting'"):
        replica.report(load)
    load.state = "dancing"
    with pytest.raises(WorkerFailed, match="says 'dancing'"):
        replica.report(load)
    replica.lost("test")
    replica.check_integrity()
    with pytest.raises(AssertionError, match="registered; connecting -> up"):
        replica.move(ReplicaState.UP, "from the dead")
    await client.close()
    await fleet.close()


async def test_who_waits_hears_of_a_new_role() -> None:
    async with house("prefill-1", "prefill-2") as inside:
        waiting = asyncio.create_task(inside.pool.wait_changed())
        await asyncio.sleep(0)
        inside.fleet["prefill-2"].role = "decode"
        await until(waiting.done)
        assert inside.pool.count_up("decode") == 1
