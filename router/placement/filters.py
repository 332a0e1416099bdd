"""Who may take it at all."""

from __future__ import annotations

from router.placement.decision import Need, Refusal
from router.replica import Replica, ReplicaState


def refuse(need: Need, replica: Replica) -> Refusal | None:
    """Why this replica cannot take it; None = it can."""
    if replica.role != need.role:
        return Refusal.ROLE
    if replica.state is ReplicaState.DRAINING:
        return Refusal.DRAINING
    if not replica.up:
        return Refusal.NOT_UP
    if need.kv_abi is not None and replica.kv_abi != need.kv_abi:
        return Refusal.KV_ABI
    if need.num_tokens > replica.capacity_tokens:
        return Refusal.CAPACITY
    return None
