"""The planner as it runs: what it sees, who of several publishes, and what it does when Redis or a
router is away."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from cluster.autoscaler import loop as loop_module
from cluster.autoscaler import store as store_module
from cluster.autoscaler.offered import Offered
from cluster.autoscaler.past import Past
from cluster.autoscaler.published import ByHand, Published, orders
from cluster.autoscaler.store import Store
from cluster.commands.scale import scale as scale_command
from cluster.config import ClusterConfig
from cluster.plan_policy import PlanPolicy
from cluster.planner.forecast import COARSE
from cluster.redis_server import ask_by_hand, read_orders
from router.replica import ReplicaState
from tests.cluster.autoscaling import CLUSTER, Replicas, Running, running, spec, watched
from tests.redis_server import RedisServer, redis_server
from tests.router.fleet import until
from workers.core.errors import ConfigError, Unavailable
from workers.wire import admin_pb2 as admin
from workers.wire import worker_pb2 as worker
from workers.wire.redis_client import RedisClient, connect_redis
from workers.wire.redis_endpoint import RedisEndpoint


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
async def client(redis: RedisServer) -> AsyncIterator[RedisClient]:
    async with connect_redis(redis.url) as connected:
        yield connected


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "LOOK_S", 0.02)


# -- what is offered ------------------------------------------------------------------------------


def test_arrivals_count_when_they_come_and_lengths_when_they_are_known() -> None:
    offered = Offered(["chat", "batch"])
    came = admin.RecordedArrival(slo_class="chat", prompt_tokens=100)
    offered.note(admin.RecordedBatch(arrivals=[came, came]))
    served = admin.RecordedRequest(
        slo_class="chat", prompt_tokens=100, cached_tokens=64, output_tokens=7, ttft_s=0.1
    )
    unread = admin.RecordedRequest(slo_class="batch", outcome="resource_exhausted")
    waited = admin.RecordedRequest(slo_class="chat", prompt_tokens=100, outcome="unavailable")
    offered.note(admin.RecordedBatch(requests=[served, unread, waited]))
    batch, chat = offered.take({"chat": 3})
    assert (chat.arrivals, chat.queued, batch.arrivals, batch.queued) == (2, 3, 1, 0)
    assert (chat.prompts.weight, chat.uncached.mean, chat.outputs.mean) == (2, 36, 7)
    assert chat.uncached.weight == 1, "who never had a worker computed nothing"
    assert [each.arrivals for each in offered.take({})] == [0, 0], "told once, classes for ever"


def test_the_past_is_kept_in_bins() -> None:
    past = Past()
    assert [past.note(30, 10.0, 300.0 + 10 * place) for place in range(30)] == [None] * 30
    assert past.note(0, 10.0, 600.0) == (450.0, 3.0)


# -- who is there ---------------------------------------------------------------------------------


def test_a_start_takes_from_when_it_was_asked_for_until_the_replica_is_up() -> None:
    seen, replicas = watched(), Replicas()
    replicas.come("decode-0")
    assert seen.look(replicas, {}, 0.0) == {}, "who was there before us has not started"
    seen.look(replicas, {"decode": 3}, 10.0)
    assert seen.state(replicas, 15.0)["decode"].starting == (5.0, 5.0)
    replicas.come("decode-1")
    assert seen.look(replicas, {"decode": 3}, 40.0) == {"decode": [30.0]}
    state = seen.state(replicas, 41.0)["decode"]
    assert (state.up, state.starting, state.took_s) == (2, (31.0,), (30.0,))
    assert seen.state(replicas, 42.0)["decode"].took_s == (), "told once"
    assert seen.look(replicas, {"decode": 2}, 50.0) == {}, "nobody waits for it any more"
    assert seen.state(replicas, 50.0)["decode"].starting == ()


def test_what_never_comes_is_not_waited_for_for_ever() -> None:
    seen, replicas = watched(), Replicas()
    for now in (0.0, 1.0, 601.0):
        seen.look(replicas, {"prefill": 1}, now)
    assert seen.state(replicas, 601.0)["prefill"].starting == (0.0,), "asked for anew"


def test_who_drains_or_was_lost_does_not_count_as_there() -> None:
    seen, replicas = watched(), Replicas()
    drains, lost = replicas.come("decode-0"), replicas.come("decode-1")
    drains.move(ReplicaState.DRAINING, "test")
    lost.lost("test")
    seen.lost(lost)
    lost.move(ReplicaState.CONNECTING, "called again")
    seen.look(replicas, {"decode": 2}, 0.0)
    state = seen.state(replicas, 0.0)["decode"]
    assert (state.up, len(state.starting), state.draining) == (0, 2, 1)


def test_a_pool_is_as_its_replicas_report_it() -> None:
    seen, replicas = watched(), Replicas()
    one = replicas.come("decode-0", busy=3)
    assert not seen.state(replicas, 0.0)["decode"].fitted
    steps = [worker.StepReport(decode_seqs=1, decode_kv=10, seconds=0.01)] * 8
    seen.reported(one, worker.LoadReport(step_tokens=512, max_seqs=64, steps=steps))
    state = seen.state(replicas, 0.0)
    assert state["decode"].fitted and not state["prefill"].fitted
    (decode,) = [each for each in seen.specs if each.name == "decode"]
    assert (decode.kv_tokens, decode.max_seqs) == (400_000, 64)
    one.load.made_tokens = 70
    assert seen.decoding(replicas) == (3, 70)


@pytest.mark.parametrize(
    ("up", "size", "prefill", "flips"),
    [
        (["decode", "decode"], 2, 1, [("flex-0", "prefill")]),
        (["prefill", "prefill"], 2, 1, [("flex-0", "decode")]),
        (["decode", "prefill"], 3, 2, []),  # the one that comes will prefill
        (["prefill", "decode", "decode"], 3, 2, [("flex-1", "prefill")]),
        (["prefill", "prefill", "decode"], 2, 1, []),  # one leaves
    ],
)
def test_flex_replicas_get_the_roles_of_the_plan(
    up: list[Any], size: int, prefill: int, flips: list[tuple[str, str]]
) -> None:
    seen, replicas = watched(spec("flex")), Replicas()
    for index, role in enumerate(up):
        replicas.come(f"flex-{index}", role, busy=index)
    assert list(seen.flips(replicas, {"flex": size}, {"flex": prefill})) == flips


# -- what holds -----------------------------------------------------------------------------------


def plan(at: float, mode: Any = "apply", **pools: int) -> Published:
    return Published(at=at, mode=mode, pools=pools)


@pytest.mark.parametrize(
    ("published", "by_hand", "held"),
    [
        (None, {}, {}),
        (plan(5.0, prefill=2), {}, {"prefill": 2}),
        (plan(5.0, "advise", prefill=2), {}, {}),
        (plan(5.0, "advise", prefill=2), {"prefill": 3}, {"prefill": 3}),
        (plan(5.0, prefill=2, decode=1), {"prefill": 3}, {"prefill": 3, "decode": 1}),
        (plan(15.0, prefill=2), {"prefill": 3}, {"prefill": 2}),
    ],
)
def test_what_is_asked_for_by_hand_holds_until_the_next_plan_that_is_applied(
    published: Published | None, by_hand: dict[str, int], held: dict[str, int]
) -> None:
    asked = {pool: ByHand(replicas=n, at=10.0) for pool, n in by_hand.items()}
    assert orders(published, asked) == held


async def test_the_policy_of_ray_serve_obeys_no_advice(
    redis: RedisServer, client: RedisClient
) -> None:
    at = RedisEndpoint(url=redis.url)
    store = Store(client, CLUSTER, "a")
    assert await store.lead() and await store.publish(plan(5.0, "advise", decode=4))
    assert await read_orders(at, CLUSTER) == {}
    await ask_by_hand(at, CLUSTER, "decode", 2)
    policy = PlanPolicy(at.model_dump(mode="json"), CLUSTER)
    await until(lambda: policy.wanted == {"decode": 2})


async def test_kvasir_scale_says_for_how_long_it_holds_and_what_would_do(
    redis: RedisServer, client: RedisClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"name": CLUSTER, "model": "demo", "pools": [PREFILL, DECODE]}))

    async def scale(pool: str, replicas: int, url: str | None = redis.url) -> str:
        await asyncio.to_thread(scale_command, pool, replicas, path, url)
        return capsys.readouterr().out

    assert await scale("d", 3) == "d: 3 replicas are asked for\n"
    store = Store(client, CLUSTER, "one")
    await store.lead()
    await store.publish(plan(5.0, d=4).model_copy(update={"every_s": 10}))
    assert "until the planner's next plan (every 10 s)" in await scale("d", 2)
    assert await read_orders(RedisEndpoint(url=redis.url), CLUSTER) == {"d": 2}
    with pytest.raises(ConfigError, match=r"2 to 4 replicas .* the nearest is 4"):
        await scale("d", 9)
    with pytest.raises(ConfigError, match="no pool 'x' in the config; there are p, d"):
        await scale("x", 1)
    with pytest.raises(ConfigError, match="--redis-url"):
        await scale("d", 3, None)


# -- several planners, and Redis ------------------------------------------------------------------


async def test_only_the_holder_of_the_lease_publishes(
    client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Store(client, CLUSTER, "one"), Store(client, CLUSTER, "two")
    assert await one.lead() and await one.lead() and not await two.lead()
    assert await one.publish(plan(1.0, decode=1)) and not await two.publish(plan(2.0, decode=9))
    await two.resign()
    assert not await two.lead(), "nobody gives back what is another's"
    await one.resign()
    monkeypatch.setattr(store_module, "LEASE_S", 0.05)
    assert await two.lead() and not await one.publish(plan(3.0, decode=5))
    found, _ = await one.read()
    assert found is not None and found.at == 1.0
    while not await one.lead():  # the lease of who died runs out
        await asyncio.sleep(0.01)


async def test_a_plan_that_is_applied_ends_what_was_asked_for_by_hand(
    redis: RedisServer, client: RedisClient
) -> None:
    at, store = RedisEndpoint(url=redis.url), Store(client, CLUSTER, "one")
    await store.lead()
    await ask_by_hand(at, CLUSTER, "decode", 2)
    await store.publish(plan(5.0, "advise", decode=7))
    assert (await store.read())[1]["decode"].replicas == 2, "advice ends nothing"
    await store.publish(plan(6.0, decode=7))
    await store.publish(plan(7.0, "advise", decode=7))
    assert await read_orders(at, CLUSTER) == {}, "nor does it come back when nothing is applied"


async def test_what_is_kept_is_bounded(client: RedisClient) -> None:
    store = Store(client, CLUSTER, "one")
    assert (await store.past(), await store.starts()) == ([], {})
    for at in range(3):
        await store.remember_rate(300.0 * at, at / 2)
    assert await store.past() == [(0, 0), (300, 0.5), (600, 1)]
    for pool in ("decode", "prefill"):
        await store.remember_starts(pool, [1.0] * 30)
    assert {pool: len(took) for pool, took in (await store.starts()).items()} == {
        "decode": 16, "prefill": 16,
    }  # fmt: skip
    key = f"{{{CLUSTER}}}:planner:past"
    await client.rpush(key, *["0 1"] * COARSE)
    await store.remember_rate(1.0, 1.0)
    assert await client.llen(key) == COARSE


async def published(made: Running, holds: Callable[[Published], bool]) -> Published:
    while True:
        try:
            found, _ = await made.store.read()
            if found is not None and holds(found):
                return found
        except Unavailable:
            pass
        await asyncio.sleep(0.02)


async def test_load_makes_a_plan_that_is_applied(redis: RedisServer, quick: None) -> None:
    async with running(redis.url, "one") as made:
        made.routers.rate = 1  # about 50 a second
        found = await published(made, lambda plan: plan.pools["decode"] > 1)
        assert (found.mode, found.by) == ("apply", "one")
        assert found.plan["reasons"] and found.plan["inputs"]["prompt"] == pytest.approx(4000)
        assert found.seen["decode"].up == 1
        await until(lambda: any(pools["decode"] > 1 for pools in made.applied))
        later = await published(made, lambda plan: plan.at > found.at + 0.3)
        assert later.seen["decode"].starting, "what was ordered counts as coming"
        metrics = generate_latest(made.metrics.registry).decode()
        assert re.search(
            r'kvasir_planner_actions_total\{kind="start",pool="decode"\} [1-9]', metrics
        )
        assert "kvasir_planner_publishes 1.0" in metrics


async def test_advice_is_published_and_not_applied(redis: RedisServer, quick: None) -> None:
    async with running(redis.url, "one", "advise") as made:
        made.routers.rate = 1
        found = await published(made, lambda plan: plan.pools["decode"] > 1)
        assert found.mode == "advise" and not made.applied
        await ask_by_hand(RedisEndpoint(url=redis.url), CLUSTER, "decode", 3)
        await until(lambda: made.applied == [{"decode": 3}] or len(made.applied) > 1)
        assert all(pools == {"decode": 3} for pools in made.applied)


async def test_of_two_planners_one_publishes_and_the_other_takes_over(
    redis: RedisServer, quick: None
) -> None:
    async with AsyncExitStack() as life:
        one = await life.enter_async_context(running(redis.url, "one"))
        first = await published(one, lambda plan: plan.by == "one")
        async with running(redis.url, "two") as two:
            later = await published(two, lambda plan: plan.at > first.at + 0.5)
            assert later.by == "one" and one.loop.leads and not two.loop.leads
            await life.aclose()
            assert await published(two, lambda plan: plan.by == "two")


async def test_redis_may_go_and_come_back_empty(redis: RedisServer, quick: None) -> None:
    async with running(redis.url, "one") as made:
        before = await published(made, lambda plan: True)
        redis.stop()
        await until(lambda: not made.loop.leads)
        redis.start()
        after = await published(made, lambda plan: plan.at > before.at)
        assert after.pools == before.pools


async def test_nothing_is_planned_from_half_a_picture(redis: RedisServer, quick: None) -> None:
    async with running(redis.url, "one") as made:
        made.routers.rate = 1
        before = await published(made, lambda plan: plan.pools["decode"] > 1)
        made.routers.whole = False
        await asyncio.sleep(0)
        known = (await published(made, lambda plan: True)).at
        for _ in range(20):
            await asyncio.sleep(0.02)
        now = await published(made, lambda plan: True)
        assert now.at <= known + 0.2 and now.pools["decode"] >= before.pools["decode"]
        made.routers.whole = True
        await published(made, lambda plan: plan.at > now.at)


async def test_who_has_just_begun_takes_nothing_away(redis: RedisServer, quick: None) -> None:
    async with running(redis.url, "one") as made:
        for index in range(1, 4):
            made.replicas.come(f"decode-{index}")
        found = await published(made, lambda plan: plan.seen["decode"].up == 4)
        assert found.pools["decode"] == 4
        assert "nothing is stopped" in found.plan["reasons"][-1]
    async with running(redis.url, "two", settle_s=0.01) as made:
        for index in range(1, 4):
            made.replicas.come(f"decode-{index}")
        assert await published(made, lambda plan: plan.pools["decode"] == 1)


async def test_a_planner_knows_what_those_before_it_learnt(redis: RedisServer, quick: None) -> None:
    async with connect_redis(redis.url) as client:
        before = Store(client, CLUSTER, "before")
        await before.remember_starts("decode", [200.0] * 4)
    async with running(redis.url, "after") as made:
        found = await published(made, lambda plan: True)
        roles = found.plan["inputs"]["roles"]
        assert roles["decode"]["horizon_s"] >= 200.0 > roles["prefill"]["horizon_s"]


# -- what a config may say ------------------------------------------------------------------------

PREFILL = {"name": "p", "role": "prefill", "min": 1, "max": 4}
DECODE = {"name": "d", "role": "decode", "min": 2, "replicas": 2, "max": 4}


@pytest.mark.parametrize(
    ("planner", "pools", "said"),
    [
        (
            {"budget": 2.5},
            [PREFILL, DECODE],
            "planner.budget: 2.5 .*p 1 x 1, d 2 x 1.* to 3 or",
        ),
        ({}, [PREFILL | {"max": 1}, DECODE | {"max": 2}], "every pool has a fixed size"),
        ({}, [PREFILL, PREFILL | {"name": "q"}, DECODE], "p and q are both prefill"),
        ({}, [PREFILL, DECODE, {"name": "a", "role": "aggregated"}], "a is aggregated"),
        ({"attainment": 1.0}, [PREFILL, DECODE], "planner.attainment"),
        ({"mode": "auto"}, [PREFILL, DECODE], "'off', 'advise' or 'apply'"),
        ({"routers": ["r"]}, [PREFILL, DECODE], "planner.routers"),
        ({"budgit": 1}, [PREFILL, DECODE], "budgit"),
        ({}, [PREFILL | {"min": 5}, DECODE], "min 5, replicas 1 and max 4 .*exchange min and max"),
        ({}, [PREFILL | {"replicas": 9}, DECODE], "not in order; set replicas to 4"),
    ],
)
def test_what_cannot_be_planned_is_named_with_what_would_do(
    planner: dict[str, Any], pools: list[dict[str, Any]], said: str
) -> None:
    config = {"model": "demo", "planner": {"mode": "apply"} | planner, "pools": pools}
    with pytest.raises(ValueError, match=said):
        ClusterConfig.model_validate(config)


def test_off_is_what_yaml_makes_of_it() -> None:
    assert (
        ClusterConfig.model_validate({"model": "demo", "planner": {"mode": False}}).planner.mode
        == "off"
    )
