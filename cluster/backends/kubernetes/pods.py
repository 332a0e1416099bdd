"""Pods of a pool as the ReplicaSet controller sees them, and which of them go when it shrinks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

COST = "controller.kubernetes.io/pod-deletion-cost"
LEAVING = "kvasir.dev/leaving"  # set by us: drained, so of no more use
LOWEST_COST = -1000
PHASES = {"Pending": 0, "Unknown": 1, "Running": 2}


@dataclass(frozen=True, slots=True)
class Pod:
    name: str
    ip: str | None
    assigned: bool
    phase: str
    ready: bool
    cost: int
    leaving: bool


def active(objects: Iterable[Any], labels: Mapping[str, str]) -> list[Pod]:
    """Of V1Pods those with these labels that count: not over, and not being deleted."""
    return [
        pod_of(item)
        for item in objects
        if labels.items() <= (item.metadata.labels or {}).items()
        and item.metadata.deletion_timestamp is None
        and _phase(item) not in ("Succeeded", "Failed")
    ]


def pod_of(item: Any) -> Pod:
    """Of a V1Pod."""
    notes = item.metadata.annotations or {}
    conditions = (item.status and item.status.conditions) or []
    return Pod(
        name=item.metadata.name,
        ip=item.status.pod_ip if item.status else None,
        assigned=bool(item.spec and item.spec.node_name),
        phase=_phase(item),
        ready=any(each.type == "Ready" and each.status == "True" for each in conditions),
        cost=_number(notes.get(COST, "0")),
        leaving=LEAVING in notes,
    )


def who_goes(pods: Iterable[Pod], loads: Mapping[str, float], count: int) -> list[Pod]:
    """`count` of them: those who go already; then in the order in which the controller deletes
    (https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#scaling-a-replicaset),
    so that those named are those deleted; among equals the least loaded."""
    return sorted(pods, key=lambda pod: (not pod.leaving, *_rank(pod), loads.get(pod.name, 0.0)))[
        :count
    ]


def _rank(pod: Pod) -> tuple[bool, int, bool, int]:
    return pod.assigned, PHASES.get(pod.phase, 1), pod.ready, pod.cost


def _phase(item: Any) -> str:
    return (item.status and item.status.phase) or "Pending"


def _number(text: str) -> int:
    """The API server takes no other than numbers; what stood there before it looked is none."""
    try:
        return int(text)
    except ValueError:
        return 0
