"""Split or alone: what placement predicts for each way, and which it takes."""

from __future__ import annotations

import asyncio
import random

import pytest

from router.latency import FittedLatency, HardwareClass
from router.placement.decision import Need, Refusal, Targets
from router.placement.duty import MEMORY_S, MOST, Duty
from router.placement.moment import MARGIN, price
from router.placement.placement import Disaggregation, Placement
from router.placement.policies.cached import Soonest
from router.placement.ways import few, risk_s
from router.replica import Replica
from tests.router.fleet import house, request, until
from tests.router.test_dispatch import check_output
from tests.router.test_placement import LLAMA_8B, replica
from workers.wire import worker_pb2 as worker

TARGETS = Targets(1.0, 0.05, 0.05)


class SetClock:
    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s


def placement(mode: Disaggregation = "auto", policy=None) -> Placement:
    latency = FittedLatency(LLAMA_8B, HardwareClass("h100"))
    return Placement(latency, random.Random(1), policy, disaggregation=mode, clock=SetClock())


def roomy(name: str, role: str) -> Replica:
    made = replica(name, role, kv_tokens=400_000)
    made.load = worker.LoadReport(
        blocks_total=25_000, step_tokens=2048, max_seqs=256, seqs_limit=256,
        kv_bytes_per_token=131_072,
    )  # fmt: skip
    return made


def pair() -> tuple[Replica, Replica]:
    return roomy("p", "prefill"), roomy("d", "decode")


def need(tokens: int = 4000, cached: dict[str, int] | None = None, **more) -> Need:
    return Need("prefill", tokens, cached or {}, targets=TARGETS, **more)


def test_roles_are_kept_while_there_is_room() -> None:
    decision = placement().place(need(), pair())
    assert decision is not None and decision.replica.id == "p" and not decision.alone
    way = decision.among.ways[decision.place]
    assert way.decode is not None and way.decode.id == "d" and 0 < way.gap_s < 0.1
    names = [decision.among.name(place) for place in range(len(decision.among))]
    assert sorted(names) == ["d alone", "p", "p alone"]
    other = decision.counterfactual
    assert other is not None and decision.among.alone(other)


def test_a_queue_at_the_prefill_replicas_is_gone_around() -> None:
    prefill, decode = pair()
    with prefill.assigned(pending_tokens=40_000, kv_tokens=40_000):
        decision = placement().place(need(), [prefill, decode])
        assert decision is not None and decision.alone and decision.replica is decode
        kept = placement("remote").place(need(), [prefill, decode])
        assert kept is not None and kept.replica is prefill
        assert kept.refused == {"d": Refusal.ROLE}


def test_full_decode_replicas_leave_it_where_it_was_prefilled() -> None:
    prefill, decode = pair()
    decode.seqs_limit = 8
    held = [decode.assignments.add(0, 4000, decodes=True) for _ in range(24)]
    decision = placement().place(need(), [prefill, decode])
    assert decision is not None and decision.alone and decision.replica is prefill
    for each in held:
        decode.assignments.remove(each)


def test_a_conversation_stays_where_it_was_decoded() -> None:
    prefill, decode = pair()
    decision = placement().place(need(8000, {"d": 7984, "p": 4000}), [prefill, decode])
    assert decision is not None and decision.alone and decision.replica is decode


def test_decodes_near_their_target_are_not_disturbed() -> None:
    """The same queue: with many decodes at their limit it is waited for."""
    prefill, decode = pair()
    chooser = placement()
    chooser.ways.duty.given("d", MEMORY_S * 0.5)
    tight = Targets(1.0, 0.02, 0.02)
    for _ in range(60):
        decode.assignments.add(0, 2000, decodes=True)
    with prefill.assigned(pending_tokens=8000, kv_tokens=8000):
        asked = Need("prefill", 4000, {}, targets=tight)
        decision = chooser.place(asked, [prefill, decode])
    assert decision is not None and decision.replica is prefill
    ways = dict(zip(decision.scores, decision.among.ways, strict=True))
    assert ways["d alone"].after_s > 1 + ways["p alone"].after_s


@pytest.mark.parametrize("lonely", ["prefill", "decode"])
def test_one_pool_goes_on_without_the_other(lonely: str) -> None:
    only = roomy("only", lonely)
    decision = placement().place(need(), [only])
    assert decision is not None and decision.alone and decision.replica is only


def test_nobody_prefills_what_no_decode_replica_can_read() -> None:
    """Two KV ABIs, as while a cluster is upgraded: each prefill replica is paired with its own."""
    old, new = roomy("p", "prefill"), roomy("d", "decode")
    new.kv_abi = "other"
    alone = placement().place(need(), [old, new])
    assert alone is not None and alone.alone
    both = roomy("p other", "prefill")
    both.kv_abi = "other"
    with both.assigned(pending_tokens=2000, kv_tokens=2000):
        for mode in ("auto", "remote"):
            chosen = placement(mode).place(need(), [old, both, new])
            assert chosen is not None
            for place, way in enumerate(chosen.among.ways):
                if way.decode is not None and not way.alone:
                    assert way.decode.kv_abi == chosen.among.replicas[place].kv_abi


def test_duty_of_many_replicas_is_kept_when_some_are_gone() -> None:
    chooser = placement()
    for generation in range(3):
        replicas = [roomy(f"p{generation} {n}", "prefill") for n in range(40)]
        for each in replicas:
            chooser.ways.given(each, 1.0)
        chooser.place(need(), replicas)
    assert len(chooser.ways.duty) == 40
    assert all(chooser.ways.duty.part(each.id) > 0 for each in replicas)


def test_local_knows_no_roles_and_other_policies_no_ways() -> None:
    prefill, decode = pair()
    local = placement("local").place(need(), [prefill, decode])
    assert local is not None and local.alone and len(local.among) == 2
    baseline = placement("auto", Soonest(random.Random(1)))
    plain = baseline.place(need(), [prefill, decode])
    assert plain is not None and plain.replica is prefill and not plain.alone
    assert plain.counterfactual is None


def test_duty_fades_and_forgets() -> None:
    clock = SetClock()
    duty = Duty(clock)
    clock.time_s = 100 * MEMORY_S
    duty.given("a", MEMORY_S / 4)
    assert duty.part("a") == pytest.approx(0.25) and duty.part("b") == 0
    assert duty.part("a", MEMORY_S) == MOST
    clock.time_s += MEMORY_S
    assert 0.05 < duty.part("a") < 0.15
    duty.given("b", 1.0)
    duty.keep({"b"})
    assert len(duty) == 1 and duty.part("a") == 0


def test_lateness_costs_ten_times_what_slowness_does() -> None:
    assert price(2, 0.04, (1 - MARGIN) * 0.05) == pytest.approx(2 * 100 * 0.004)
    assert price(1, 0.06, (1 - MARGIN) * 0.05) == pytest.approx(100 * (0.006 + 0.015))


def test_few_long_prompts_in_between_are_a_risk_where_the_mean_is_in_time() -> None:
    assert risk_s(0.010, 0.010, 0.2, 0.02) == 0.0  # nothing comes in between
    assert risk_s(0.015, 0.010, 0.2, float("inf")) == 0.0
    near, far = risk_s(0.015, 0.010, 0.2, 0.02), risk_s(0.015, 0.010, 0.2, 0.05)
    assert near > 100 * far > 0
    assert risk_s(0.015, 0.010, 0.4, 0.02) > near > risk_s(0.015, 0.010, 0.01, 0.02)


def test_few_are_the_idle_and_the_holders() -> None:
    replicas = [roomy(f"r{n}", "decode") for n in range(20)]
    for n, each in enumerate(replicas):
        each.assignments.add(1000 * n, 1000)
    found = few(replicas, {f"r{n}": 16 * n for n in range(10, 20)}, 8, random.Random(1))
    assert {each.id for each in found} == {"r0", "r1", "r2", "r3", "r16", "r17", "r18", "r19"}
    assert few(replicas[:8], {}, 8, random.Random(1)) == replicas[:8]


async def test_without_a_prefill_worker_a_request_is_served_by_a_decode_worker() -> None:
    async with house("decode-1", disaggregation="auto") as inside:
        emissions = await inside.tokens(request())
        assert sum(len(emission.tokens) for emission in emissions) == 6
        text = inside.metrics.render().decode()
        assert 'kvasir_ways_total{way="alone on decode"} 1.0' in text


async def test_a_ticket_that_nobody_is_left_to_redeem_is_given_up_and_all_goes_on_alone() -> None:
    async with house("prefill-1", "decode-1", disaggregation="auto") as inside:
        prefill = inside.fleet["prefill-1"]
        prefill.script.append("gate computed")
        asking = asyncio.create_task(inside.tokens(asked := request()))
        await until(lambda: bool(prefill.tickets))
        await inside.fleet["decode-1"].kill()
        await until(lambda: not inside.pool.get("decode-1").up)
        prefill.gate.set()
        check_output(asked, await asking)
        first, again = prefill.calls
        assert len(again.sequence.token_ids) == len(first.sequence.token_ids) + 1
        assert not again.HasField("ticket")
        await inside.fleet.quiet()  # the ticket was released, too
