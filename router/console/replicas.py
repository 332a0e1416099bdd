"""Pools and replicas for people: what each says of itself, and what this router gave it."""

from __future__ import annotations

from typing import Any

from router.console.events import DOWN, PoolEvents
from router.latency.errors import Errors
from router.pool import Pool
from router.replica import Replica

ROLES = ("prefill", "decode", "aggregated")  # the order in which a request meets them


def pools(pool: Pool, errors: Errors, events: PoolEvents) -> list[dict[str, Any]]:
    """In the order in which a request meets them; replicas by name."""
    found: dict[str, list[Replica]] = {}
    for replica in sorted(pool, key=lambda each: each.id):
        found.setdefault(replica.record.pool, []).append(replica)
    told = [_pool(name, replicas, errors, events) for name, replicas in found.items()]
    return sorted(told, key=lambda each: (min(map(ROLES.index, each["roles"])), each["name"]))


def _pool(name: str, replicas: list[Replica], errors: Errors, events: PoolEvents) -> dict[str, Any]:
    roles = [role for role in ROLES if any(replica.role == role for replica in replicas)]
    return {
        "name": name,
        "roles": roles,
        "up": sum(replica.up for replica in replicas),
        "replicas": [_replica(replica, errors, events) for replica in replicas],
    }


def _replica(replica: Replica, errors: Errors, events: PoolEvents) -> dict[str, Any]:
    """`blocks_*` in blocks of `block_size` tokens; `given_*`: by this router, seen by it at once,
    where the rest is a report, half a second old. `predictions`: median error of each kind."""
    load, record = replica.load, replica.record
    return {
        "id": replica.id,
        "role": replica.role,
        "state": DOWN if events.is_down(replica.id) else str(replica.state),
        "alive": replica.alive,
        "leased": replica.leased,
        "address": record.address,
        "incarnation": replica.incarnation,
        "hardware": record.hardware,
        "tensor_ranks": record.tensor_ranks,
        "expert_ranks": record.expert_ranks,
        "kv_abi": replica.kv_abi,
        "running": load.running,
        "seqs_limit": load.seqs_limit,
        "max_seqs": load.max_seqs,
        "step_tokens": load.step_tokens,
        "most_step_tokens": load.most_step_tokens,
        "waiting": load.waiting,
        "waiting_tokens": load.waiting_tokens,
        "given_seqs": replica.assignments.seqs,
        "given_tokens": replica.assignments.pending_tokens,
        "block_size": record.block_size,
        "blocks_total": load.blocks_total,
        "blocks_used": load.blocks_used,
        "blocks_cached": load.blocks_cached,
        "tickets_open": load.tickets_open,
        "hit_tokens": load.prefix_hit_tokens,
        "query_tokens": load.prefix_query_tokens,
        "preemptions": load.preemptions,
        "quarantined": list(load.quarantined),
        "predictions": [
            {"kind": kind, "count": track.count, "error": track.error, "bias": track.bias}
            for kind, track in errors.of(replica.id).items()
        ],
        "story": list(replica.story)[-3:],
    }
