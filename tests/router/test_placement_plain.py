"""Placement is fast because it shares and skips; what it says is what plain formulas say."""

from __future__ import annotations

import random

import pytest

from router.latency import FittedLatency, HardwareClass
from router.placement.decision import Need, Phase, Targets
from router.placement.filters import refuse, takers
from router.placement.placement import Placement
from router.replica import Replica, ReplicaState
from router.sharing.foreign import Load
from tests.router.plain_placement import Plain
from tests.router.test_placement import LLAMA_8B, replica
from tests.router.test_ways import SetClock
from workers.wire import worker_pb2 as worker

ROLES = ("prefill", "prefill", "decode", "decode", "aggregated")


def cluster(rng: random.Random, count: int) -> list[Replica]:
    """Of every role, two KV ABIs, all loads; some do not serve."""
    made = []
    for number in range(count):
        each = replica(
            f"r{number}", rng.choice(ROLES), rng.choice([4096, 1 << 20]), rng.choice("xxxy")
        )
        pages = rng.choice([512, 1 << 16])
        each.load = worker.LoadReport(
            blocks_total=pages,
            blocks_used=rng.randrange(pages + 1),
            step_tokens=rng.choice([0, 512, 2048]),
            seqs_limit=rng.choice([0, 4, 64]),
            kv_bytes_per_token=1 << 17,
            quarantined=[f"r{n}" for n in range(count) if rng.random() < 0.1],
        )
        for _ in range(rng.randrange(8)):
            pending = rng.choice([0, 0, rng.randrange(1, 8000)])
            each.assignments.add(pending, rng.randrange(1, 8000), decodes=rng.random() < 0.7)
        if rng.random() < 0.3:
            each.foreign.report(Load(rng.randrange(3000), rng.randrange(9000), rng.randrange(4)))
        if rng.random() < 0.1:
            each.move(ReplicaState.DRAINING, "test")
        made.append(each)
    return made


def asked(rng: random.Random, replicas: list[Replica], phase: Phase) -> Need:
    tokens = rng.choice([rng.randrange(2, 300), rng.randrange(300, 20_000)])
    cached = {r.id: rng.randrange(1, tokens) for r in replicas if rng.random() < 0.5}
    targets = rng.choice([Targets(), Targets(1.0, 0.05, 0.05), Targets(0.1, 0.01, 0.02)])
    sender = rng.choice(replicas).id if phase == "decode" else None
    abi = rng.choice([None, "x"])
    return Need(phase, tokens, cached, kv_abi=abi, sender=sender, targets=targets)


@pytest.mark.parametrize("seed", range(12))
def test_every_way_costs_what_the_formulas_say(seed: int) -> None:
    rng, clock = random.Random(seed), SetClock()
    latency = FittedLatency(LLAMA_8B, HardwareClass("h100"))
    chooser = Placement(latency, random.Random(seed), disaggregation="auto", clock=clock)
    plain = Plain(latency, clock)
    replicas = cluster(rng, rng.choice([3, 8, 30]))
    seen = 0
    for _ in range(6):
        clock.time_s += 1.0  # seconds a queued token takes are asked for again
        need = asked(rng, replicas, "prefill")
        decision = chooser.place(need, replicas)
        if decision is None:
            assert all(refuse(need, each) is not None for each in replicas)
            continue
        among = decision.among
        for place, (each, way) in enumerate(zip(among.replicas, among.ways, strict=True)):
            if way.alone:
                wait_s, work_s, gap = plain.alone(need, each)
            else:
                wait_s, work_s = plain.prefill(need, each)
                gap = way.gap_s, way.itl_s, way.after_s
                if way.decode is not None:
                    gap = plain.split(need, each, way.decode)
            assert (among.wait_s[place], among.work_s[place]) == pytest.approx((wait_s, work_s))
            assert (way.gap_s, way.itl_s, way.after_s) == pytest.approx(gap, abs=1e-12)
            seen += 1
        plain.duty.given(decision.replica.id, decision.score.work_s)
    assert seen > 6


@pytest.mark.parametrize("seed", range(8))
def test_who_may_take_it_is_asked_at_once_as_one_by_one(seed: int) -> None:
    rng = random.Random(seed)
    replicas = cluster(rng, 20)
    for phase in ("prefill", "decode"):
        for mode in ("auto", "remote", "local"):
            need = asked(rng, replicas, phase)
            fine = [each for each in replicas if refuse(need, each) is None]
            assert takers(need, replicas) == fine
            latency = FittedLatency(LLAMA_8B, HardwareClass("h100"))
            chooser = Placement(latency, random.Random(1), disaggregation=mode)
            decision = chooser.place(need, replicas)
            if decision is None:
                continue
            for each in replicas:
                why = chooser.refuse(need, each)
                assert decision.refused.get(each.id, why) in (why, "aggregated")


@pytest.mark.parametrize("seed", range(4))
def test_a_ticket_costs_what_the_formulas_say(seed: int) -> None:
    rng = random.Random(seed)
    latency = FittedLatency(LLAMA_8B, HardwareClass("h100"))
    chooser = Placement(latency, random.Random(seed))
    plain = Plain(latency, SetClock())
    replicas = cluster(rng, 30)
    for _ in range(10):
        need = asked(rng, replicas, "decode")
        decision = chooser.place(need, replicas)
        assert decision is not None and need.sender is not None
        among = decision.among
        for place, each in enumerate(among.replicas):
            room_s, step_s = plain.decode(need, each)
            num_bytes = (need.num_tokens - among.cached[place]) * each.kv_bytes_per_token
            fetch_s = latency.transfer_s(num_bytes, need.sender, each.id)
            assert among.transfer_s[place] == pytest.approx(fetch_s)
            figures = among.wait_s[place], among.work_s[place]
            assert figures == pytest.approx((room_s + fetch_s, step_s))
