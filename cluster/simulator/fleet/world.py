"""What simulated workers are, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.simulator.fleet.asks import Ask
from cluster.simulator.fleet.cores import SharedCores
from cluster.simulator.fleet.desk import SimDesk
from cluster.simulator.fleet.record import Timeline
from cluster.simulator.fleet.stream import Tokens
from router.latency import HardwareClass, LatencyModel
from workers.core.events import KVEvent
from workers.core.eviction import EvictionName
from workers.wire import common_pb2 as common

KV_ABI = "simulated"


@dataclass(frozen=True, slots=True)
class WorkerSizes:
    """One engine. `kv_tokens`: its KV memory; `token_bytes`: of the KV of a token, all ranks."""

    hardware: str
    tensor_ranks: int
    expert_ranks: int
    block_size: int
    kv_tokens: int
    context_length: int
    step_tokens: int
    max_seqs: int
    token_bytes: int
    eviction: EvictionName = "adaptive"

    @property
    def hardware_class(self) -> HardwareClass:
        return HardwareClass(self.hardware, self.tensor_ranks, KV_ABI, self.expert_ranks)


@dataclass(frozen=True, slots=True)
class World:
    """What all workers share. `line_of(request id)`: where its tokens are booked; `events`: what a
    worker's cache says; `desk_of`: the worker that holds a ticket; `cores`: where they all run on
    the same."""

    model: LatencyModel
    ttl_s: float
    noise: float
    seed: int
    ask_of: Callable[[str], Ask]
    line_of: Callable[[str], Timeline]
    events: Callable[[str, list[KVEvent]], None]
    tokens: Tokens
    desk_of: Callable[[common.ReplicaRef], SimDesk]
    cores: SharedCores | None = None
