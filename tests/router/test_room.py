"""What the line takes for room: nobody waits where a replica that may do it is idle."""

from __future__ import annotations

import random

import pytest

from router.flow.room import PoolRoom
from router.latency import FittedLatency, HardwareClass
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
