"""Of several planners one acts: the holder of the Lease."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.k8s.planners import FakeWorkers, elected, planner, until
from tests.k8s.stand_in import StandIn, stand_in

SHORT_S = 3.0


async def asked(server: StandIn, who: str, times: int = 1) -> None:
    """Until it has looked at the Lease so often from now on."""
    before = len(server.calls("get leases", who))
    await until(lambda: len(server.calls("get leases", who)) > before + times)


@pytest.fixture
async def server() -> AsyncIterator[StandIn]:
    async with stand_in() as server:
        server.deploy("prefill", 2)
        server.deploy("decode", 3)
        yield server


async def test_of_two_planners_exactly_one_acts_and_the_other_follows_when_it_goes(
    server: StandIn, tmp_path: Path
) -> None:
    async with planner(server, tmp_path, "one") as one:
        await elected(one)
        async with planner(server, tmp_path, "two") as two:
            await asked(server, "two")
            for each in (one, two):
                await each.want({"decode": 4})
            await until(lambda: server.size("decode") == 4)
            assert one.applier.leads and not two.applier.leads
            await two.want({"decode": 5})
            one.running.cancel()
            await until(lambda: server.size("decode") == 5)  # at once: the Lease was given back
            assert two.applier.leads
    assert server.held_by == [("one", "one"), ("two", "two")]
    lease = server.objects["leases"]["chat-planner"]["spec"]
    assert lease["holderIdentity"] == "" and lease["leaseTransitions"] == 1


async def test_who_begins_at_once_does_not_share_the_lease(server: StandIn, tmp_path: Path) -> None:
    async with (
        planner(server, tmp_path, "one") as one,
        planner(server, tmp_path, "two") as two,
    ):
        await until(lambda: one.applier.leads or two.applier.leads)
        await asked(server, "one", 2)
        await asked(server, "two", 2)
        assert one.applier.leads is not two.applier.leads


async def test_a_planner_that_died_is_followed_once_its_lease_is_over(
    server: StandIn, tmp_path: Path
) -> None:
    async with planner(server, tmp_path, "one", lease_s=SHORT_S) as one:
        await elected(one)
        async with planner(server, tmp_path, "two", lease_s=SHORT_S) as two:
            await asked(server, "two")
            await one.die()
            renewed = server.calls("update leases", "one")
            last = max([asked.at for asked in renewed], default=0.0)
            await elected(two)
            took = server.calls("update leases", "two")[0]
            assert took.at - last >= SHORT_S - 0.1, "the Lease was still good"
            await two.want({"decode": 2})
            await until(lambda: server.size("decode") == 2)
    assert [who for who, _ in server.held_by] == ["two"]


async def test_a_planner_that_the_api_does_not_hear_stops_before_another_may_begin(
    server: StandIn, tmp_path: Path
) -> None:
    workers = FakeWorkers(server)
    async with planner(server, tmp_path, "one", workers, lease_s=SHORT_S) as one:
        await elected(one)
        async with planner(server, tmp_path, "two", lease_s=SHORT_S) as two:
            await asked(server, "two")
            workers.drains.clear()
            await one.want({"decode": 2})
            await until(lambda: workers.drained)  # it is in the middle of it
            server.silent.add("one")
            await until(lambda: not one.applier.leads)
            assert not two.applier.leads, "there was a time in which both led"
            workers.drains.set()
            await elected(two)
            # What the other began is finished, whatever is wanted now: that pod is drained.
            await two.want({"prefill": 2})
            await until(lambda: server.size("decode") == 2)
            assert server.deleted == workers.drained
            server.silent.clear()
            await asked(server, "one")
            assert not one.applier.leads
    assert server.held_by
    assert all(who == holder for who, holder in server.held_by)


async def test_a_lease_that_somebody_else_takes_is_lost_at_once(
    server: StandIn, tmp_path: Path
) -> None:
    async with planner(server, tmp_path, "one") as one:
        await elected(one)
        server.change("leases", "chat-planner", spec={"holderIdentity": "an operator"})
        await until(lambda: not one.applier.leads)
        await one.want({"decode": 8})
        await asked(server, "one", 2)
        assert server.size("decode") == 3 and not one.applier.leads


async def test_without_the_right_to_leases_nobody_acts_and_it_is_said(
    server: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.forbidden = {"get leases", "create leases"}
    async with planner(server, tmp_path, "one") as one:
        await until(lambda: len(server.calls("get leases")) >= 2)
        await one.want({"decode": 8})
        assert not one.applier.leads and not one.running.done()
    said = [r.getMessage() for r in caplog.records if "not allowed" in r.getMessage()]
    assert len(said) == 1 and "get leases" in said[0]
