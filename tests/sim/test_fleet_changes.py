"""The simulated fleet while it changes: replicas that come and go, roles, shared cores; and what
the trace and recorded steps say."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.bench.workload import Job, read_trace
from cluster.simulator.fleet.asks import asks
from cluster.simulator.fleet.cores import Contention
from cluster.simulator.fleet.elastic import ElasticPool
from cluster.simulator.fleet.fleet import Fleet
from cluster.simulator.fleet.plan import FleetPlan, Outcome
from cluster.simulator.fleet.record import Histogram
from cluster.simulator.fleet.setup import Options, fleet_plan, read_model
from cluster.simulator.fleet.steps import Line
from router.roles import set_role
from tests.sim.test_fleet import BLOCK, alone, jobs, plan, run, simulate
from workers.core.clock import run_virtual
from workers.core.errors import ConfigError
from workers.wire import common_pb2 as common


def served(
    made: FleetPlan, trace: list[Job], beside: Callable[[Fleet], Awaitable[None]]
) -> list[Outcome]:
    """Every request to its end, while `beside` changes the fleet."""

    async def all_of_it() -> list[Outcome]:
        async with Fleet.open(made) as fleet:
            loop = asyncio.get_running_loop()
            began = loop.time()
            async with asyncio.TaskGroup() as requests:
                changing = requests.create_task(_of(beside(fleet)))
                for ask in asks(trace, BLOCK):
                    await asyncio.sleep(max(0.0, began + ask.at_s - loop.time()))
                    requests.create_task(fleet.serve(ask))
                await changing
            await asyncio.sleep(2.0)
            fleet.check_integrity()
            assert fleet.leftover() == []
            return fleet.outcomes

    return run_virtual(all_of_it())


async def _of(work: Awaitable[None]) -> None:
    await work


def test_a_pool_grows_cold_and_shrinks_drained_and_nobody_is_lost() -> None:
    sizes: list[tuple[int, int, int]] = []

    async def beside(fleet: Fleet) -> None:
        pool = ElasticPool(fleet, fleet.plan.replicas[-1], cold_start_s=3.0)
        assert pool.resize(3) == 2
        await asyncio.sleep(2.9)
        sizes.append((len(pool.up), len(pool.starting_s), len(fleet.pool)))
        await asyncio.sleep(0.2)
        sizes.append((len(pool.up), len(pool.starting_s), len(fleet.pool)))
        assert pool.took_s == [3.0, 3.0]
        pool.resize(4)
        assert pool.resize(1) == 3, "the one that starts is given up first, then two drain"
        assert pool.num_draining == 2 and pool.starting_s == []
        paid_s = pool.paid_s
        assert paid_s == pytest.approx(3 * 3.1)
        await asyncio.sleep(20.0)
        sizes.append((len(pool.up), pool.num_draining, len(fleet.pool)))
        assert 20.0 < pool.paid_s - paid_s < 3 * 20.0
        busy = [name for name, each in fleet.workers.items() if each.engine.steps]
        assert len(busy) <= 2, "those that are gone are gone"

    made = plan(prefill=1, decode=1)
    outcomes = served(made, jobs(120, rate=30.0), beside)
    assert sizes == [(1, 2, 2), (3, 0, 4), (1, 0, 2)]
    assert len(outcomes) == 120
    assert all(o.tokens == o.ask.output_tokens for o in outcomes)


def test_a_replica_changes_its_role_and_ends_what_it_has() -> None:
    steps: dict[str, int] = {}

    async def beside(fleet: Fleet) -> None:
        await asyncio.sleep(1.0)
        flex = fleet.workers["decode-1"]
        assert flex.calls, "it decodes"
        await set_role(fleet.pool, "decode-1", common.ROLE_PREFILL)
        replica = fleet.pool.get("decode-1")
        assert replica is not None and replica.role == "prefill"
        assert flex.calls, "what runs there ends there"
        await asyncio.sleep(8.0)
        prompts = flex.engine.scheduler.query_tokens
        steps["prompts"] = prompts
        fleet.set_role("decode-1", "decode")

    outcomes = served(plan(prefill=1, decode=2), jobs(150, rate=15.0), beside)
    assert all(o.tokens == o.ask.output_tokens for o in outcomes)
    assert steps["prompts"] > 3000, "it computed prompts in its new role"


def test_workers_on_shared_cores_slow_each_other_down() -> None:
    made = plan(aggregated=2)
    shared = replace(made, contention=Contention.even(2.0))
    single = run(shared, alone(1000, 50)).outcomes[0]
    free = run(made, alone(1000, 50)).outcomes[0]
    assert single.ttft_s == pytest.approx(free.ttft_s, rel=1e-9), "nobody else computes"
    assert single.itl_s == pytest.approx(free.itl_s, rel=1e-9)
    pair = [Job(0.0, 1000, 50, "one"), Job(0.0, 1000, 50, "other")]
    for outcome in run(shared, pair).outcomes:
        assert outcome.ttft_s == pytest.approx(2 * free.ttft_s, rel=1e-6)
        assert outcome.itl_s == pytest.approx(2 * (free.itl_s or 0.0), rel=1e-6)


def test_of_a_step_only_the_part_beside_another_is_slower() -> None:
    made = replace(plan(aggregated=2), contention=Contention.even(2.0))
    whole_s = made.truth.prefill_s(made.replicas[0].name, 1000, 0)
    trace = [Job(0.0, 1000, 1, "first"), Job(0.75 * whole_s, 1000, 1, "second")]
    first, second = run(made, trace).outcomes
    # 3/4 alone; the last quarter takes twice as long, during which the second one gets as far
    assert first.ttft_s == pytest.approx(1.25 * whole_s, rel=1e-6)
    assert second.ttft_s == pytest.approx(1.25 * whole_s, rel=1e-6)


def test_what_is_beside_the_simulated_comes_before_it() -> None:
    made = plan(aggregated=1)
    bare, later = run(made, alone(500, 5)), run(replace(made, front_s=0.2), alone(500, 5))
    assert later.outcomes[0].ttft_s == pytest.approx(bare.outcomes[0].ttft_s + 0.2)
    assert later.outcomes[0].itl_s == pytest.approx(bare.outcomes[0].itl_s)


def test_steps_of_a_line_are_counted_as_one_by_one() -> None:
    rng = random.Random(2)
    for _ in range(200):
        line = Line(
            rng.lognormvariate(-4, 1), rng.choice((0.0, rng.random() * 1e-4)), rng.randint(1, 400)
        )
        together, single = Histogram(), Histogram()
        together.add_line(line, weight=3)
        for place in range(line.num_steps):
            single.add(line.first_s + place * line.growth_s, 3)
        assert together.count == single.count
        assert together.total_s == pytest.approx(single.total_s)
        for part in (0.0, 0.1, 0.5, 0.9, 1.0):
            assert math.isclose(together.quantile(part), single.quantile(part), rel_tol=0.0051)


def test_recorded_steps_say_more_than_data_sheets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of a cluster that takes 30 ms for each decode of any size."""
    path, config, trace = tmp_path / "steps.jsonl", tmp_path / "cluster.yaml", tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(_step(count)) + "\n" for count in (1, 2, 4, 8) * 40))
    config.write_text("model: llama-8b\nhardware: h100\n")
    trace.write_text(json.dumps({"timestamp_ms": 0, "input_length": 9, "output_length": 50}) + "\n")
    out = tmp_path / "out.json"
    rest = ("--config", str(config), "--trace", str(trace), "--json", str(out))
    simulate(capsys, monkeypatch, *rest, "--steps", str(path))
    itl = json.loads(out.read_text())["classes"]["standard"]["itl"]
    assert itl["p50"] == pytest.approx(0.03, rel=0.1)
    config.write_text("model: llama-8b\nhardware: a100\n")
    said = simulate(capsys, monkeypatch, *rest, "--steps", str(path))
    assert "has steps of h100 x 1, but none of a100 x 1" in said.replace("\n", " ")


def _step(count: int) -> dict[str, object]:
    work = {"prefill_tokens": 0, "prefill_kv": 0, "prefill_pairs": 0}
    where = {"replica": "decode-0", "hardware": "h100", "tensor_ranks": 1, "expert_ranks": 1}
    return {**where, **work, "decode_seqs": count, "decode_kv": 60 * count, "seconds": 0.03}


def test_requests_have_the_class_and_tenant_of_the_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp_ms": 1000 * at, "input_length": 100, "output_length": 5, "slo_class": name,
         "tenant": "team"}
        for at, name in enumerate(("interactive", "batch", None))
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trace = read_trace(path)
    outcomes = sorted(run(plan(aggregated=1), trace).outcomes, key=lambda o: o.ask.at_s)
    assert [o.slo_class for o in outcomes] == ["interactive", "batch", "standard"]
    assert {o.ask.tenant for o in outcomes} == {"team"}
    everybody = asks(trace, BLOCK, slo_class="batch")
    assert {ask.slo_class for ask in everybody} == {"batch"}


def test_a_file_without_steps_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text("")
    with pytest.raises(ConfigError, match="has no steps"):
        made = plan(aggregated=1)
        assert made
        from cluster.config import ClusterConfig

        config = ClusterConfig.model_validate({"model": "llama-8b", "hardware": "h100"})
        fleet_plan(config, read_model("llama-8b"), Options(steps=path))
