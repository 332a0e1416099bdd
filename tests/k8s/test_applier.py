"""Pools on Kubernetes follow the plan: the official client against a stand-in API server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from cluster.backends.kubernetes.applier import KubernetesApplier, Target
from tests.k8s.planners import CONFIG, FakeWorkers, Planner, elected, planner, refusal, until
from tests.k8s.stand_in import RELEASE, StandIn, Trouble, stand_in
from workers.core.errors import ConfigError

SCALE = "update deployments/scale"
LOOK = "get deployments/scale"
DECODE = f"{RELEASE}-decode"


@pytest.fixture
async def server() -> AsyncIterator[StandIn]:
    async with stand_in() as server:
        server.deploy("prefill", 2)
        server.deploy("decode", 3)
        yield server


@pytest.fixture
def workers(server: StandIn) -> FakeWorkers:
    return FakeWorkers(server)


@pytest.fixture
async def one(server: StandIn, tmp_path: Path, workers: FakeWorkers) -> AsyncIterator[Planner]:
    async with planner(server, tmp_path, "one", workers) as one:
        await elected(one)
        yield one


async def test_pools_get_the_sizes_of_the_plan_through_their_scale(
    server: StandIn, one: Planner
) -> None:
    await one.want({"prefill": 4, "decode": 2}, "the evening peak")
    await until(lambda: (server.size("prefill"), server.size("decode")) == (4, 2))
    assert [len(server.pods(pool)) for pool in ("prefill", "decode")] == [4, 2]
    assert not server.calls("update deployments"), "only the scale is written"
    await until(lambda: len(server.objects["events"]) == 2)
    said = {
        event["involvedObject"]["name"]: (event["reason"], event["message"])
        for event in server.objects["events"].values()
    }
    found = {event["involvedObject"]["uid"] for event in server.objects["events"].values()}
    assert found == {"uid-prefill", "uid-decode"}, "`kubectl describe` asks by it"
    assert said == {
        f"{RELEASE}-prefill": ("ScaledUp", "2 -> 4 replicas; the evening peak"),
        DECODE: ("ScaledDown", "3 -> 2 replicas; the evening peak"),
    }


async def test_a_plan_beyond_the_bounds_is_held_to_them(server: StandIn, one: Planner) -> None:
    await one.want({"prefill": 100, "decode": 0})
    await until(lambda: (server.size("prefill"), server.size("decode")) == (4, 1))


async def test_pools_that_the_plan_does_not_name_stay(server: StandIn, one: Planner) -> None:
    await one.want({"decode": 5})
    await until(lambda: server.size("decode") == 5)
    assert server.size("prefill") == 2
    assert [asked.body["metadata"]["name"] for asked in server.calls(SCALE)] == [DECODE]


async def test_the_least_loaded_pod_is_drained_and_then_it_is_the_one_that_goes(
    server: StandIn, one: Planner, workers: FakeWorkers
) -> None:
    first, idle, last = server.pods("decode")
    workers.loads = {first: 3, idle: 0, last: 9}
    await one.want({"decode": 2})
    await until(lambda: server.size("decode") == 2)
    assert (workers.drained, workers.sizes, server.deleted) == ([idle], [3], [idle])
    assert server.pods("decode") == [first, last]
    notes = server.calls("patch pods")[0].body["metadata"]["annotations"]
    assert notes["controller.kubernetes.io/pod-deletion-cost"] == "-1000"


async def test_the_deletion_cost_alone_names_the_pod(
    server: StandIn, one: Planner, workers: FakeWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its probe has not noticed yet that it drains. The newest would go otherwise."""
    monkeypatch.setattr(server, "set_ready", lambda pod, ready: None)
    first, second, newest = server.pods("decode")
    workers.loads = {first: 0, second: 5, newest: 5}
    await one.want({"decode": 2})
    await until(lambda: server.size("decode") == 2)
    assert server.deleted == [first]


async def test_pods_that_serve_nobody_go_first(server: StandIn, one: Planner) -> None:
    starting = server.pods("decode")[1]
    server.set_ready(starting, False)
    await asyncio.sleep(0)
    await until(lambda: starting in server.pods("decode"))
    await one.want({"decode": 2})
    await until(lambda: server.size("decode") == 2)
    assert server.deleted == [starting]


async def test_a_pool_that_shrinks_grows_again_only_after_the_drained_pod_has_gone(
    server: StandIn, one: Planner, workers: FakeWorkers
) -> None:
    """A drained worker takes nothing any more: kept, it would count for one that serves."""
    workers.drains.clear()
    server.deletes = False  # the controller takes its time
    await one.want({"decode": 2})
    await until(lambda: workers.drained)
    await one.want({"decode": 4})
    workers.drains.set()
    await until(lambda: server.size("decode") == 2)
    looked = len(server.calls(LOOK, name=DECODE))
    await one.want({"decode": 4})
    await until(lambda: len(server.calls(LOOK, name=DECODE)) > looked)
    await asyncio.sleep(0.2)
    assert server.size("decode") == 2
    server.deletes = True
    server.control("decode")
    await until(lambda: server.size("decode") == 4)
    assert server.deleted == workers.drained


async def test_pods_that_were_never_made_are_given_up_first(
    server: StandIn, one: Planner, workers: FakeWorkers
) -> None:
    server.makes = False  # no quota is left
    await one.want({"decode": 6})
    await until(lambda: server.size("decode") == 6)
    await one.want({"decode": 3})
    await until(lambda: server.size("decode") == 3)
    assert not workers.drained and len(server.pods("decode")) == 3


async def test_a_pool_that_is_rolled_out_shrinks_after_that(
    server: StandIn, tmp_path: Path, workers: FakeWorkers
) -> None:
    server.change("deployments", DECODE, status={"updatedReplicas": 1})
    async with planner(server, tmp_path, "one", workers) as one:
        await one.want({"prefill": 1, "decode": 2})
        await until(lambda: server.size("prefill") == 1)
        assert server.size("decode") == 3 and len(workers.drained) == 1
        server.change("deployments", DECODE, status={"updatedReplicas": 3})
        await until(lambda: server.size("decode") == 2)


async def test_a_new_version_that_the_controller_has_not_seen_yet_counts_as_rolled_out(
    server: StandIn, tmp_path: Path, workers: FakeWorkers
) -> None:
    server.change("deployments", DECODE, metadata={"generation": 2})
    async with planner(server, tmp_path, "one", workers) as one:
        await one.want({"prefill": 1, "decode": 2})
        await until(lambda: server.size("prefill") == 1)
        assert server.size("decode") == 3 and len(workers.drained) == 1
        server.change("deployments", DECODE, status={"observedGeneration": 2})
        await until(lambda: server.size("decode") == 2)


async def test_who_changes_a_deployment_meanwhile_is_read_again_and_not_overwritten_blindly(
    server: StandIn, one: Planner, workers: FakeWorkers
) -> None:
    workers.drains.clear()
    await one.want({"decode": 2})
    await until(lambda: workers.drained)
    server.change("deployments", DECODE, metadata={"labels2": "new"})
    workers.drains.set()
    await until(lambda: server.size("decode") == 2)
    assert [asked.status for asked in server.calls(SCALE)] == [409, 200]
    assert set(workers.drained) == set(server.deleted), "the same pod is drained and goes"
    assert one.applier.measures.conflicts._value.get() >= 1


async def test_sizes_that_somebody_else_sets_are_set_back(server: StandIn, one: Planner) -> None:
    await one.want({"decode": 3})
    server.scale("decode", 7)
    await until(lambda: server.size("decode") == 3)


async def test_throttled_calls_wait_as_long_as_the_server_asks(
    server: StandIn, one: Planner
) -> None:
    server.troubles = [
        Trouble(SCALE, 1, 429, retry_after="1"),
        Trouble("get deployments/scale", 2, 503),
    ]
    await one.want({"decode": 4})
    await until(lambda: server.size("decode") == 4)
    refused, done = server.calls(SCALE)
    assert (refused.status, done.status) == (429, 200)
    assert done.at - refused.at >= 1.0


async def test_a_watch_that_the_server_has_forgotten_begins_anew_with_a_list(
    server: StandIn, one: Planner
) -> None:
    await one.want({"prefill": 2})
    await until(lambda: len(server.watchers) == 2)
    changed = server.pods("decode")[1]
    server.forget()
    server.set_ready(changed, False)  # nobody watches now
    await until(lambda: len(server.calls("list pods")) == 2)
    await until(lambda: len(server.watchers) == 2)
    await one.want({"decode": 2})
    await until(lambda: server.size("decode") == 2)
    assert [asked.name for asked in server.calls("patch pods")] == [changed], "it is not known"


async def test_a_watch_that_breaks_off_goes_on_from_its_bookmark(
    server: StandIn, one: Planner
) -> None:
    await one.want({"prefill": 2})
    await until(lambda: len(server.watchers) == 2)
    server.bookmark()
    marked = server.version
    await asyncio.sleep(0.1)
    server.hang_up()
    await until(lambda: len(server.calls("watch pods")) == 2)
    assert len(server.calls("list pods")) == 1
    server.oldest = marked  # an older version would be Gone
    await until(lambda: len(server.watchers) == 2)
    server.scale("decode", 6)
    await one.want({"decode": 5})
    await until(lambda: server.size("decode") == 5)
    assert len(server.calls("list pods")) == 1


async def test_what_rbac_does_not_allow_is_said_once_and_counted(
    server: StandIn, one: Planner, caplog: pytest.LogCaptureFixture
) -> None:
    server.forbidden.add(SCALE)
    with caplog.at_level(logging.ERROR, "kvasir.kubernetes"):
        why = await refusal(one, {"decode": 5})
        assert "update deployments/scale is forbidden" in why
        await until(lambda: len(server.calls(SCALE)) >= 3)
    said = [record.getMessage() for record in caplog.records]
    assert (
        len(said) == 1 and "not allowed: update deployments/scale in namespace serving" in said[0]
    )
    denied = one.applier.measures.denied.labels(SCALE)._value.get()
    assert denied >= 3
    server.forbidden.clear()
    await until(lambda: server.size("decode") == 5, "it goes on once it is allowed")


async def test_nobody_is_drained_for_a_size_that_may_not_be_set(
    server: StandIn, one: Planner, workers: FakeWorkers
) -> None:
    server.forbidden.add(SCALE)
    assert "forbidden" in await refusal(one, {"decode": 2})
    assert not workers.drained and not server.calls("patch pods")
    server.forbidden.clear()
    await until(lambda: server.size("decode") == 2)


async def test_where_a_watch_is_not_allowed_lists_go_on(server: StandIn, one: Planner) -> None:
    server.forbidden = {"watch pods"}
    await one.want({"decode": 5})
    await until(lambda: server.size("decode") == 5)
    await until(lambda: len(server.calls("list pods")) == 2)
    assert one.applier.measures.denied.labels("watch pods")._value.get() >= 1


async def test_a_server_that_refuses_watches_is_not_asked_for_list_after_list(
    server: StandIn, one: Planner
) -> None:
    server.troubles = [Trouble("watch pods", 1000, 429)]
    await one.want({"decode": 5})
    await until(lambda: len(server.calls("list pods")) == 3)
    first, second, third = (asked.at for asked in server.calls("list pods")[:3])
    assert second - first >= 0.45 and third - second >= 0.95, "pauses grow"


async def test_a_token_that_is_not_known_any_more_is_no_matter_of_rights(
    server: StandIn, one: Planner
) -> None:
    server.troubles = [Trouble(LOOK, 1, 401)]
    await one.want({"decode": 5})
    await until(lambda: server.size("decode") == 5, "as soon as it is known again")
    assert one.applier.measures.denied.labels(LOOK)._value.get() == 0


async def test_a_deployment_that_is_not_there_is_said(server: StandIn, one: Planner) -> None:
    server.remove("deployments", DECODE)
    assert f"no Deployment {DECODE}" in await refusal(one, {"prefill": 3, "decode": 2})
    await until(lambda: server.size("prefill") == 3)


async def test_without_a_way_to_the_api_it_says_so(server: StandIn, tmp_path: Path) -> None:
    nowhere = tmp_path / "nothing"
    applier = KubernetesApplier(
        CONFIG, Target.parse("serving/chat"), CollectorRegistry(), kubeconfig=nowhere
    )
    with pytest.raises(ConfigError, match="no way to the Kubernetes API"):
        await applier.run()
