"""Who may take it at all."""

from __future__ import annotations

from collections.abc import Sequence

from router.placement.decision import Need, Refusal
from router.replica import Replica, ReplicaState


def refuse(need: Need, replica: Replica) -> Refusal | None:
    """Why this replica cannot take it, whatever its role; None = it can."""
    state = replica.state
    if state is not ReplicaState.UP:
        return Refusal.DRAINING if state is ReplicaState.DRAINING else Refusal.NOT_UP
    if need.kv_abi is not None and replica.kv_abi != need.kv_abi:
        return Refusal.KV_ABI
    if need.num_tokens > replica.capacity_tokens:
        return Refusal.CAPACITY
    if need.sender is not None and need.sender in replica.quarantined:
        return Refusal.QUARANTINED
    return None


def takers(need: Need, replicas: Sequence[Replica]) -> list[Replica]:
    """Those that refuse() has nothing against. Each decision asks all: without a call for each."""
    up, tokens, kv_abi, sender = ReplicaState.UP, need.num_tokens, need.kv_abi, need.sender
    return [
        replica
        for replica in replicas
        if replica.state is up
        and tokens <= replica.capacity_tokens
        and (kv_abi is None or replica.kv_abi == kv_abi)
        and (sender is None or sender not in replica.quarantined)
    ]
