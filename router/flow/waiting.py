"""One request in line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from router.flow.classes import FlowKey


class Place(StrEnum):
    ON_TIME = "on_time"
    LATE = "late"
    OUT = "out"  # granted, refused or left


@dataclass(eq=False, slots=True)
class Waiting:
    """Times are the owner's clock; `work_s` is what it will take of one replica. `weight`: of its
    class beside other classes; `tenant_weight`: of its tenant beside others of the class.
    `start_by`: the last moment at which its TTFT target can be met, inf = has none. `give_up_at`:
    it is refused then."""

    flow: FlowKey
    work_s: float
    arrived: float
    weight: float = 1.0
    tenant_weight: float = 1.0
    background: bool = False
    start_by: float = math.inf
    give_up_at: float = math.inf
    priority: int = 0  # higher goes first within its flow
    place: Place = Place.OUT
