"""What a request is taken to cost before it has a place."""

from __future__ import annotations

import random
from typing import Any

from router.desk import Desk
from router.flight import BlockIds
from router.index.expecting import ExpectingIndex
from router.latency import FittedLatency, HardwareClass
from router.metrics import RouterMetrics
from router.placement.placement import Placement
from router.replica import Replica
from tests.router.test_placement import LLAMA_8B, replica
from workers.core.clock import SystemClock
from workers.core.request import Request, SamplingParams

TOKENS = 2000


def made(name: str, hardware: str, role: str = "prefill") -> Replica:
    one = replica(name, role)
    one.record = one.record.model_copy(update={"hardware": hardware, "pool": hardware})
    return one


def blocks() -> BlockIds:
    ids = tuple(range(TOKENS))
    return BlockIds(Request("r", token_ids=ids, prompt_len=TOKENS, params=SamplingParams()))


class Inside:
    def __init__(self, *replicas: Replica) -> None:
        self.latency = FittedLatency(LLAMA_8B, HardwareClass("h100"))
        for one in replicas:
            self.latency.placed(one.id, HardwareClass(one.record.hardware), 2048)
        self.index = ExpectingIndex(SystemClock())
        pool: Any = Replicas(replicas)
        placement = Placement(self.latency, random.Random(1), disaggregation="remote")
        self.desk = Desk(pool, placement, self.index, self.latency, RouterMetrics())

    def caches(self, name: str, tokens: int) -> None:
        self.index.expect(name, blocks().of("x", 16)[: tokens // 16])


class Replicas(list[Replica]):
    def wake(self) -> None: ...


def test_work_is_that_of_the_replica_that_has_the_most_of_the_prompt() -> None:
    it = Inside(made("a", "h100"), made("b", "h100"), made("c", "h100", "decode"))
    whole_s = it.desk.expected_s(blocks())
    assert whole_s == it.latency.prefill_s("a", TOKENS, 0) > 0
    it.caches("b", 1600)
    it.caches("c", 1920)
    assert it.desk.expected_s(blocks()) == it.latency.prefill_s("b", 400, 1600) < whole_s


def test_a_few_tokens_on_a_slow_replica_do_not_make_it_the_measure() -> None:
    it = Inside(made("slow", "cpu"), made("fast", "h100"))
    it.caches("slow", 320)
    assert it.desk.expected_s(blocks()) == it.latency.prefill_s("fast", TOKENS, 0)
    assert it.latency.prefill_s("slow", TOKENS - 320, 320) > it.desk.expected_s(blocks())


def test_without_anybody_to_prefill_it_is_nothing() -> None:
    assert Inside(made("d", "h100", "decode")).desk.expected_s(blocks()) == 0.0
