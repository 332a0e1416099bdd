"""What the line in front of the cluster knows of the replicas behind it."""

from __future__ import annotations

from collections.abc import Iterable

from router.latency import LatencyModel
from router.placement.filters import serves
from router.placement.scorers import QUEUED, STEPS_UNTIL_FREE
from router.replica import Replica

KEPT_FREE = 1 / 8  # of the room to decode, where background work would take it
AHEAD = 1 / 8  # of the places to decode: prefilled before one is free, so that none stays empty


class PoolRoom:
    """A Room over the replicas that are up. Prefill is what the line is for; where every decode
    replica is full, its next free place is what a request would wait for."""

    def __init__(self, replicas: Iterable[Replica], latency: LatencyModel) -> None:
        self._replicas = replicas
        self._latency = latency

    @property
    def servers(self) -> int:
        return sum(replica.up and serves(replica.role, "prefill") for replica in self._replicas)

    def backlog_s(self, unplaced_s: float, *, background: bool) -> float:
        prefill_s, decode_s = [], []
        for replica in self._replicas:
            if not replica.up:
                continue
            if serves(replica.role, "prefill"):
                prefill_s.append(self._pending_s(replica))
            if serves(replica.role, "decode"):
                decode_s.append(self._full_s(replica, background))
        if not prefill_s:
            return 0.0
        return min(prefill_s) + unplaced_s / len(prefill_s) + min(decode_s, default=0.0)

    def _pending_s(self, replica: Replica) -> float:
        pending = replica.pending_tokens
        return self._latency.prefill_s(replica.id, QUEUED, 0) * pending / QUEUED if pending else 0.0

    def _full_s(self, replica: Replica, background: bool) -> float:
        """0 while it has pages, and soon a place in its batches."""
        kept_tokens = KEPT_FREE * replica.capacity_tokens if background else 0
        seqs = replica.load.seqs_limit * (1 - KEPT_FREE if background else 1 + AHEAD)
        if replica.free_tokens > kept_tokens and (not seqs or replica.num_seqs < seqs):
            return 0.0
        return STEPS_UNTIL_FREE * self._latency.decode_s(
            replica.id, replica.num_seqs, replica.kv_tokens
        )
