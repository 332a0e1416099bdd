"""What the line takes for room: nobody waits where a replica that may do it is idle."""

from __future__ import annotations

import random

import pytest

from router.flow.room import PoolRoom
from router.latency import FittedLatency, HardwareClass
from router.placement.moment import STEPS_UNTIL_FREE
from router.placement.placement import Disaggregation, Placement
from router.replica import Replica
from tests.router.test_placement import LLAMA_8B
from tests.router.test_ways import SetClock, roomy

ITL_S = 0.05


def room(mode: Disaggregation, *replicas: Replica) -> PoolRoom:
    latency = FittedLatency(LLAMA_8B, HardwareClass("cpu"))
    placement = Placement(latency, random.Random(1), disaggregation=mode, clock=SetClock())
    return PoolRoom(replicas, latency, placement)


def backlog_s(asked: PoolRoom, *, background: bool = False) -> float:
    return asked.backlog_s(0.0, background=background, itl_s=ITL_S)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("mode", ["auto", "local"])
@pytest.mark.parametrize("roles", [["prefill"], ["decode"], ["aggregated"], ["prefill", "decode"]])
def test_whoever_is_idle_has_room(roles: list[str], mode: Disaggregation, background: bool) -> None:
    replicas = [roomy(role, role) for role in roles]
    assert backlog_s(room(mode, *replicas), background=background) == 0.0
    for busy in replicas[:-1]:
        busy.assignments.add(8000, 8000)
    assert backlog_s(room(mode, *replicas), background=background) == 0.0
    replicas[-1].assignments.add(8000, 8000)
    assert backlog_s(room(mode, *replicas), background=background) > 1.0


def test_one_that_decodes_is_asked_where_nobody_else_is_left() -> None:
    """There is nobody whom waiting would spare."""
    only = roomy("only", "decode")
    for _ in range(8):
        only.assignments.add(0, 2000, decodes=True)
    assert backlog_s(room("auto", only)) == 0.0
    beside = roomy("busy", "prefill")
    beside.assignments.add(8000, 8000)
    assert backlog_s(room("auto", only, beside)) > 0.1, "its decodes would wait for a prompt"


def test_roles_that_are_kept_wait_for_their_own() -> None:
    prefill, decode = roomy("p", "prefill"), roomy("d", "decode")
    prefill.assignments.add(8000, 8000)
    assert backlog_s(room("remote", prefill, decode)) > 1.0
    assert backlog_s(room("remote", decode)) == 0.0, "placement says that nobody can take it"


def full(name: str, *, seqs: int, tokens: int) -> Replica:
    """Decodes so many, of `tokens` each."""
    made = roomy(name, "decode")
    made.load.blocks_used = min(25_000, seqs * tokens // 16)
    made.load = made.load
    for _ in range(seqs):
        made.assignments.add(0, tokens, decodes=True)
    return made


def test_a_place_comes_free_as_one_of_those_who_decode_ends() -> None:
    prefill = roomy("p", "prefill")
    waits = [
        backlog_s(room("remote", prefill, full("d", seqs=seqs, tokens=1000)))
        for seqs in (255, 256, 257, 266)
    ]
    assert waits[:2] == [0.0, 0.0], "one is prefilled ahead"
    step_s = FittedLatency(LLAMA_8B, HardwareClass("cpu")).decode_s("d", 257, 257_000)
    assert waits[2] == pytest.approx(STEPS_UNTIL_FREE * step_s / 257, rel=0.05)
    assert waits[3] == pytest.approx(10 * waits[2], rel=0.1)


def test_pages_come_free_as_places_do() -> None:
    prefill, beside = roomy("p", "prefill"), full("d", seqs=50, tokens=8000)
    wait_s = backlog_s(room("remote", prefill, beside))
    assert wait_s > 0
    for _ in range(10):
        beside.assignments.add(0, 8000, decodes=True)
    assert backlog_s(room("remote", prefill, beside)) == pytest.approx(11 * wait_s, rel=0.2)
    assert backlog_s(room("remote", prefill, full("d", seqs=48, tokens=8000))) == 0.0


def test_what_is_background_leaves_places_and_pages() -> None:
    prefill = roomy("p", "prefill")
    for few in (full("d", seqs=225, tokens=1000), full("d", seqs=45, tokens=8000)):
        asked = room("remote", prefill, few)
        assert backlog_s(asked) == 0.0 < backlog_s(asked, background=True)
