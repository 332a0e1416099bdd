"""Policies of placement: what each looks at."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from router.placement.decision import Candidates, Need
from router.placement.policies.hashing import ConsistentHash
from router.placement.policies.kvasir import EPOCH_S, Kvasir
from router.placement.policies.names import POLICY_NAMES, PolicyName, make_policy
from router.placement.policies.policy import Policy
from tests.router.test_placement import replica


class SetClock:
    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s


def among(
    cached: list[int], wait_s: list[float], requests: list[int] | None = None, tokens: int = 1000
) -> Candidates:
    """Replicas a, b, ...: a second computes 100 tokens."""
    replicas = [replica(name) for name, _ in zip("abcdefgh", cached, strict=False)]
    for each, count in zip(replicas, requests or [0] * len(cached), strict=True):
        for _ in range(count):
            each.assignments.add(0, tokens)
    return Candidates(replicas, cached, wait_s, [(tokens - hit) / 100 for hit in cached])


def need(tokens: int = 1000, prompt: str = "p", session: bytes | None = None) -> Need:
    blocks = tuple(f"{prompt} {depth}".encode() for depth in range(tokens // 16))
    return Need("prefill", tokens, {}, ids=blocks, session=session)


def policy(name: PolicyName) -> Policy:
    return make_policy(name, random.Random(3), SetClock())


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_each_takes_one_of_those_there_are(name: PolicyName) -> None:
    chosen = policy(name)
    for count in (1, 3, 8, 2):
        columns = among([0] * count, [0.0] * count)
        for _ in range(20):
            assert 0 <= chosen.choose(need(), columns) < count


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("least_requests", 2),
        ("least_work", 1),
        ("longest_prefix", 0),
        ("cache_aware", 0),
        ("cache_aware_tight", 2),
        ("weighted", 0),
        ("pending_prefill", 1),
        ("pending_prefill_2", 0),
        ("active_blocks", 2),
        ("queue_product", 0),
        ("kvasir", 0),
    ],
)
def test_what_each_weighs(name: PolicyName, place: int) -> None:
    """a has most of the prompt and the longest queue, b ends soonest, c has no requests."""
    columns = among([900, 300, 0], wait_s=[8.0, 0.4, 5.0], requests=[6, 4, 0])
    assert policy(name).choose(need(), columns) == place


def test_round_robin_goes_round_whoever_leaves() -> None:
    chosen = policy("round_robin")
    four = among([0] * 4, [0.0] * 4)
    assert [chosen.choose(need(), four) for _ in range(6)] == [0, 1, 2, 3, 0, 1]
    three = Candidates(four.replicas[2:], [0, 0], [0.0, 0.0], [1.0, 1.0])
    assert [chosen.choose(need(), three) for _ in range(3)] == [0, 1, 0], "c, d, c"


def test_hashing_keeps_a_name_where_it_is_and_moves_few() -> None:
    chosen = policy("session_hash")
    eight = among([0] * 8, [0.0] * 8)
    seven = Candidates(eight.replicas[:7], [0] * 7, [0.0] * 7, [1.0] * 7)
    names = [str(number).encode() for number in range(400)]
    before = [chosen.choose(need(session=name), eight) for name in names]
    assert before == [chosen.choose(need(session=name), eight) for name in names]
    assert len(Counter(before)) == 8 and max(Counter(before).values()) < 110
    after = [chosen.choose(need(session=name), seven) for name in names]
    moved = [old for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {7}


def test_prompts_that_begin_alike_hash_alike() -> None:
    chosen = policy("prefix_hash")
    columns = among([0] * 8, [0.0] * 8)
    prompts = [need(2000 + 160 * more, f"prompt {name}") for name in range(20) for more in range(3)]
    places = [chosen.choose(each, columns) for each in prompts]
    assert all(len(set(places[i : i + 3])) == 1 for i in range(0, 60, 3))
    assert len(set(places)) > 4


def test_a_bound_hands_on_what_is_too_much() -> None:
    columns = among([0] * 4, [0.0] * 4)
    chosen = ConsistentHash("session", bound=1.25)
    for _ in range(40):
        place = chosen.choose(need(session=b"one"), columns)
        columns.replicas[place].assignments.add(0, 1)
    loads = [each.num_seqs for each in columns.replicas]
    assert max(loads) <= 13 and min(loads) > 0


def test_what_has_no_name_goes_to_the_least_loaded() -> None:
    columns = among([0] * 3, [0.0] * 3, requests=[2, 0, 1])
    assert policy("session_hash").choose(need(), columns) == 1


def test_ours_spares_whoever_will_be_asked_again() -> None:
    """b was given much of late; a ends a bit later."""
    clock = SetClock()
    ours = Kvasir(random.Random(1), clock)
    for prompt in range(10):
        ours.choose(need(1000, f"{prompt}"), among([0, 0], wait_s=[90.0, 0.0]))
        clock.time_s += 10
    even = among([0, 0], wait_s=[1.0, 0.0])
    assert ours.choose(need(1000, "then"), even) == 0
    clock.time_s += 3000
    assert ours.choose(need(1000, "later"), even) == 1, "forgotten"


def test_ours_makes_no_second_copy_for_a_short_wait() -> None:
    ours = policy("kvasir")
    assert ours.choose(need(), among([900, 0], wait_s=[15.0, 0.0])) == 0
    assert ours.choose(need(), among([900, 0], wait_s=[60.0, 0.0])) == 1


def test_ours_brings_a_conversation_home_although_its_blocks_are_gone() -> None:
    ours = policy("kvasir")
    alone = among([0, 0, 0], wait_s=[0.0, 50.0, 50.0])
    assert ours.choose(need(800, "chat"), alone) == 0
    idle = among([0, 0, 0], wait_s=[0.0, 0.0, 0.0])
    others = [ours.choose(need(1000, f"other {i}"), idle) for i in range(12)]
    assert set(others) == {0, 1, 2}
    assert ours.choose(need(1000, "chat"), idle) == 0


def test_ours_forgets_replicas_that_are_gone() -> None:
    clock = SetClock()
    ours = Kvasir(random.Random(1), clock)
    for generation in range(50):
        clock.time_s += EPOCH_S + 1
        columns = among([0, 0], [0.0, 0.0])
        for each in columns.replicas:
            each.id = f"{each.id} {generation}"
        ours.choose(need(), columns)
    assert 2 <= len(ours._tallies) <= 12


def test_ours_remembers_whom_it_does_not_weigh_now() -> None:
    """Of many replicas each decision weighs a few."""
    ours = Kvasir(random.Random(1), SetClock())
    for first in range(0, 24, 2):
        columns = among([0, 0], [0.0, 0.0])
        for number, each in enumerate(columns.replicas):
            each.id = f"r{first + number}"
        for _ in range(4):
            ours.choose(need(), columns)
    assert sum(tally.work_s > 1.0 for tally in ours._tallies.values()) == 24
