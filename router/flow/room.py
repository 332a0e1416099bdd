"""What the line in front of the cluster knows of the replicas behind it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from heapq import nsmallest

from router.latency import LatencyModel
from router.placement.decision import Targets
from router.placement.moment import STEPS_UNTIL_FREE
from router.placement.placement import Placement
from router.replica import Replica

KEPT_FREE = 1 / 8  # of the room to decode, where background work would take it
LOOKED_AT = 4  # replicas that could do a request alone
AHEAD = 1  # prefilled before a place to decode is free, so that it does not stay empty


class PoolRoom:
    """A Room over the replicas that are up. Prefill is what the line is for; where every decode
    replica is full, its next free place is what a request would wait for. Where placement may send
    a request to one replica alone, that one has room too, if its decodes stay in time."""

    def __init__(
        self, replicas: Iterable[Replica], latency: LatencyModel, placement: Placement
    ) -> None:
        self._replicas = replicas
        self._latency = latency
        self._placement = placement

    @property
    def servers(self) -> int:
        everybody = self._placement.any_alone
        return sum([each.up and (everybody or each.role != "decode") for each in self._replicas])

    def backlog_s(self, unplaced_s: float, *, background: bool, itl_s: float | None) -> float:
        up = [replica for replica in self._replicas if replica.up]
        prefills = [replica for replica in up if replica.role != "decode"]
        able = up if self._placement.any_alone else prefills
        if not able:
            return 0.0
        pending_s = self._placement.ways.pending_s
        if not prefills or self._placement.disaggregation == "local":
            # Each does all of a request: to wait for others would spare nobody.
            least_s = min(pending_s(r) + self._full_s(r, background) for r in able)
            return least_s + unplaced_s / len(able)
        decode_s = (self._full_s(r, background) for r in up if r.role != "prefill")
        least_s = min(map(pending_s, prefills)) + min(decode_s, default=0.0)
        if least_s:
            least_s = min(least_s, self._alone_s(background, itl_s))
        return least_s + unplaced_s / len(prefills)

    def _alone_s(self, background: bool, itl_s: float | None) -> float:
        """Where that is cheapest: what it costs those who decode there is waited for, too."""
        if self._placement.disaggregation == "remote":
            return math.inf
        targets = Targets(others_itl_s=itl_s or math.inf)
        able = (r for r in self._replicas if r.up and r.role != "aggregated")
        idle = nsmallest(LOOKED_AT, able, key=lambda r: (r.pending_tokens, r.num_seqs))
        burdens = (
            self._full_s(r, background) + self._placement.ways.burden_s(r, targets) for r in idle
        )
        return min(burdens, default=math.inf)

    def _full_s(self, replica: Replica, background: bool) -> float:
        """Until whoever comes next has pages and a place: those that decode end one by one."""
        kept, num_seqs = KEPT_FREE if background else 0.0, replica.num_seqs
        limit = replica.seqs_limit or math.inf
        places = (1 - kept) * limit if background else limit + AHEAD
        each = replica.kv_tokens / num_seqs if num_seqs else 0.0
        free_tokens = replica.free_tokens - kept * replica.capacity_tokens
        if free_tokens <= each:
            fit = (1 - kept) * replica.capacity_tokens / each if each else 0.0
            places = min(places, num_seqs, fit)
        over = num_seqs + 1 - places
        if over <= 0:
            return 0.0
        running = max(1, min(num_seqs, math.floor(places)))
        step_s = self._latency.decode_s(replica.id, running, replica.kv_tokens)
        return over * STEPS_UNTIL_FREE / running * step_s
