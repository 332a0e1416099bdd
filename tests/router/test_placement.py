"""Filter, score, pick; and the latency model behind the scores."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from router.latency import MeasuredStep, RooflineModel
from router.placement.decision import Need, Refusal
from router.placement.placement import Placement
from router.replica import Replica, ReplicaState
from router.transfer_times import MeasuredTransfer
from tests.router.fleet import SHAPE
from workers.core.errors import ConfigError
from workers.core.hardware import PROFILES, ModelShape, hardware
from workers.wire import worker_pb2 as worker
from workers.wire.redis_keys import ReplicaRecord

CPU = hardware("cpu")
LLAMA_8B = ModelShape(32, 4096, 32, 8, 128, 14336, 128256)


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
    return Placement(RooflineModel(LLAMA_8B, hardware("h100")), random.Random(seed))


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
    near.load.quarantined.append("sender")
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
        each.load.kv_bytes_per_token = 100_000
    latency = RooflineModel(LLAMA_8B, hardware("h100"))
    latency.observe_transfers("far", [MeasuredTransfer("sender", 10_000_000, 1.0)])
    latency.observe_transfers("near", [MeasuredTransfer("sender", 10_000_000, 0.01)])
    chooser = Placement(latency, random.Random(1))
    need = Need("decode", 100, {}, sender="sender")
    decision = chooser.place(need, [near, far])
    assert decision is not None and decision.replica is near
    assert decision.scores["far"].wait_s == pytest.approx(1.0)
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
    with busy.assigned(0, 200_000):
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


def test_model_shape_counts_like_the_papers() -> None:
    config = {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "torch_dtype": "bfloat16",
    }
    shape = ModelShape.from_config(config)
    assert shape == LLAMA_8B
    embedding = shape.head_params
    assert 8.0e9 < shape.layer_params + shape.head_params + embedding < 8.1e9
    assert shape.kv_bytes_per_token == 128 * 1024
    del config["hidden_size"]
    with pytest.raises(ConfigError, match="hidden_size"):
        ModelShape.from_config(config)


def test_unknown_hardware_lists_what_there_is() -> None:
    assert {"cpu", "a100", "h100", "h200", "l40s"} <= set(PROFILES)
    assert hardware("H100").name == "h100"
    with pytest.raises(ConfigError, match="h100"):
        hardware("abacus")


def test_roofline_is_bound_by_what_it_should_be() -> None:
    model = RooflineModel(LLAMA_8B, hardware("h100"))
    weights_s = 2 * (LLAMA_8B.layer_params + LLAMA_8B.head_params) / 3.35e12
    assert model.decode_s("x", 1, 100) > weights_s  # memory: the weights are read
    assert model.decode_s("x", 2, 100) < 1.1 * model.decode_s("x", 1, 100)
    double = model.prefill_s("x", 8192, 0) / model.prefill_s("x", 4096, 0)
    assert 1.9 < double < 2.5  # compute: twice the tokens, and a little attention
    assert model.prefill_s("x", 1024, 4096) < model.prefill_s("x", 5120, 0)
    assert model.prefill_s("x", 0, 100) == 0.0
    assert model.transfer_s(25_000_000_000, "p", "d") == pytest.approx(1.0, rel=0.01)


def test_measured_steps_correct_one_replica_only() -> None:
    model = RooflineModel(SHAPE, CPU)
    prior = model.decode_s("slow", 4, 400)
    slow = MeasuredStep(prefill_tokens=0, decode_seqs=4, context_tokens=400, seconds=3 * prior)
    model.observe("slow", [slow] * 50)
    assert model.decode_s("slow", 4, 400) == pytest.approx(3 * prior)
    assert model.decode_s("other", 4, 400) == prior
    stall = MeasuredStep(prefill_tokens=0, decode_seqs=4, context_tokens=400, seconds=1e6)
    model.observe("slow", [stall])
    assert model.decode_s("slow", 4, 400) == pytest.approx(3 * prior)
    model.forget("slow")
    assert model.decode_s("slow", 4, 400) == prior


def test_measured_prefill_corrects_prefill() -> None:
    model = RooflineModel(SHAPE, CPU)
    prior = model.prefill_s("x", 512, 0)
    model.observe("x", [MeasuredStep(512, 0, 512, 2 * prior)] * 50)
    assert model.prefill_s("x", 512, 0) == pytest.approx(2 * prior)
