"""Filter, score, pick; and the latency model behind the scores."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from router.latency import FittedLatency, HardwareClass, MeasuredTransfer
from router.placement.decision import Need, Refusal
from router.placement.placement import Placement
from router.replica import Replica, ReplicaState
from workers.core.hardware import hardware
from workers.models.config import read_shape
from workers.wire import worker_pb2 as worker
from workers.wire.redis_keys import ReplicaRecord

CPU = hardware("cpu")
LLAMA_8B = read_shape("llama-8b")


class NoClient:
    """Placement calls nobody."""


def replica(name: str, role: str = "prefill", kv_tokens: int = 4096, kv_abi: str = "x") -> Replica:
    record = ReplicaRecord(
        id=name,
        incarnation=f"{name}/1",
        address="nowhere",
        pool=role,
        role=role,
        model="m",
        kv_abi=kv_abi,
        block_size=16,
        context_length=4096,
        kv_tokens=kv_tokens,
    )
    made = Replica(record, NoClient())
    made.move(ReplicaState.UP, "test")
    return made


def placement(seed: int = 1) -> Placement:
    return Placement(FittedLatency(LLAMA_8B, HardwareClass("h100")), random.Random(seed))


def test_filters_say_why() -> None:
    draining, down = replica("draining"), replica("down")
    draining.move(ReplicaState.DRAINING, "test")
    down.move(ReplicaState.DOWN, "test")
    others = [
        replica("decode", "decode"),
        replica("alien", kv_abi="y"),
        replica("small", "prefill", 8),
    ]
    need = Need("prefill", 100, {}, kv_abi="x")
    decision = placement().place(need, [replica("good"), draining, down, *others])
    assert decision is not None and decision.replica.id == "good"
    assert decision.refused == {
        "draining": Refusal.DRAINING,
        "down": Refusal.NOT_UP,
        "decode": Refusal.ROLE,
        "alien": Refusal.KV_ABI,
        "small": Refusal.CAPACITY,
    }
    assert "refused (kv_abi)" in decision.explain()
    assert placement().place(need, [draining, down, *others]) is None


def test_a_quarantined_pair_is_avoided_where_there_is_a_choice() -> None:
    near, far = replica("near", "decode"), replica("far", "decode")
    near.quarantined = frozenset({"sender"})
    need = Need("decode", 100, {}, kv_abi="x", sender="sender")
    for _ in range(8):
        decision = placement().place(need, [near, far])
        assert decision is not None and decision.replica is far
        assert decision.refused == {"near": Refusal.QUARANTINED}
    alone = placement().place(need, [near])
    assert alone is not None and alone.replica is near and not alone.refused
    other = Need("decode", 100, {}, kv_abi="x", sender="another")
    drawn = {placement(seed).place(other, [near, far]).replica.id for seed in range(20)}
    assert drawn == {"near", "far"}


def test_a_ticket_goes_where_its_kv_arrives_soonest() -> None:
    near, far = replica("near", "decode"), replica("far", "decode")
    for each in (near, far):
        each.kv_bytes_per_token = 100_000
    latency = FittedLatency(LLAMA_8B, HardwareClass("h100"))
    latency.observe_transfers("far", [MeasuredTransfer("sender", 10_000_000, 1.0)])
    latency.observe_transfers("near", [MeasuredTransfer("sender", 10_000_000, 0.01)])
    chooser = Placement(latency, random.Random(1))
    need = Need("decode", 100, {}, sender="sender")
    decision = chooser.place(need, [near, far])
    assert decision is not None and decision.replica is near
    assert decision.scores["far"].wait_s == pytest.approx(1.0, rel=0.05)
    cached = Need("decode", 100, {"far": 96}, sender="sender")
    assert chooser.place(cached, [near, far]).scores["far"].wait_s < 0.1


def test_cached_prefix_wins_until_its_holder_is_busy() -> None:
    holder, idle = replica("holder"), replica("idle")
    need = Need("prefill", 2048, {"holder": 1536})
    decision = placement().place(need, [holder, idle])
    assert decision is not None and decision.replica is holder and decision.cached_tokens == 1536
    with holder.assigned(pending_tokens=8192, kv_tokens=8192):
        decision = placement().place(need, [holder, idle])
        assert decision is not None and decision.replica is idle
        assert decision.scores["holder"].wait_s > decision.scores["idle"].wait_s == 0


def test_decode_goes_where_the_batch_is_small_and_pages_are_free() -> None:
    busy, idle, full = (replica(name, "decode") for name in ("busy", "idle", "full"))
    full.load = worker.LoadReport(blocks_total=256, blocks_used=256)
    need = Need("decode", 512, {})
    with busy.assigned(0, 200_000, decodes=True):
        decision = placement().place(need, [busy, idle, full])
    assert decision is not None and decision.replica is idle
    assert decision.scores["full"].wait_s > 0 == decision.scores["idle"].wait_s


def test_ties_are_spread_and_avoided_ones_are_a_last_resort() -> None:
    replicas = [replica(name) for name in "abc"]
    chooser = placement()
    need = Need("prefill", 64, {})
    chosen = Counter(chooser.place(need, replicas).replica.id for _ in range(300))
    assert min(chosen.values()) > 50
    need = Need("prefill", 64, {}, avoid={"a/1", "b/1"})
    assert {chooser.place(need, replicas).replica.id for _ in range(20)} == {"c"}
    need = Need("prefill", 64, {}, avoid={"a/1"})
    assert chooser.place(need, replicas[:1]).replica.id == "a"
