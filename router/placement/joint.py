"""Every way that a request can go, side by side: each prefill replica with the decode replica that
would take its ticket soonest, and each replica that could do all of it alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from router.latency import LatencyModel
from router.placement.decision import Candidates, Need, Way
from router.placement.scorers import Scorer
from router.placement.ways import LATE, Ways, few
from router.replica import Replica

PREFILLS = 12  # looked at: half of them the least loaded, half those that cache most
DECODES = 6  # the same
NEXTS = 2  # of these, for each prefill replica
ALONE = 4  # of those that would rather not
# A replica keeps to its role where it makes little difference: whoever decodes there next has an
# interest in that, and is not counted.
LEAST_GAIN = 0.1  # of the work
LEAST_GAIN_S = 2e-3


class _Next(NamedTuple):
    """A decode replica that may take it: the gap but for the transfer."""

    replica: Replica
    num_bytes: int
    gap_s: float
    way: Way


class Joint:
    def __init__(
        self, latency: LatencyModel, scorer: Scorer, ways: Ways, rng: random.Random
    ) -> None:
        self._rng = rng
        self._latency = latency
        self._scorer = scorer
        self._ways = ways

    def score(
        self,
        need: Need,
        prefills: Sequence[Replica],
        decodes: Sequence[Replica],
        alone: Sequence[Replica],
        *,
        any_alone: bool = False,
    ) -> Candidates:
        """`alone`: who is there to do both; `any_alone`: a few of the others may, too. No prefill
        replica stands here without somebody to decode, while anybody can do both."""
        hits = need.cached
        prefills = few(prefills, hits, PREFILLS, self._rng)
        decodes = few(decodes, hits, DECODES, self._rng)
        if any_alone:
            alone = [*alone, *few([*prefills, *decodes], hits, ALONE, self._rng)]
        nexts = self._nexts(need, decodes)
        # Whose KV nobody could take has no way on, unless that is so of all of them.
        paired = [replica for replica in prefills if replica.kv_abi in nexts]
        prefills = paired if paired or alone else prefills
        replicas = [*prefills, *alone]
        cached = [hits.get(replica.id, 0) for replica in replicas]
        waits, works, ways = [], [], []
        for place, (replica, hit) in enumerate(zip(replicas, cached, strict=True)):
            if place < len(prefills):
                wait_s, work_s = self._scorer.prefill(need, replica, hit)
                late_s = _late_s(need, wait_s, work_s)
                after = nexts.get(replica.kv_abi, ())
                way = self._split(need, replica, work_s, need.num_tokens - hit, after, late_s)
            else:
                wait_s, work_s = self._ways.alone_s(need, replica, hit)
                wait_s += self._scorer.pages_s(need, replica, hit)
                more_s = _late_s(need, wait_s, work_s)
                if replica.role != "aggregated":
                    more_s += LEAST_GAIN_S + LEAST_GAIN * work_s
                way = self._ways.alone(need, replica, work_s, more_s)
            waits.append(wait_s)
            works.append(work_s)
            ways.append(way)
        return Candidates(replicas, cached, waits, works, ways=ways)

    def _nexts(self, need: Need, decodes: Sequence[Replica]) -> dict[str, list[_Next]]:
        """By KV ABI, those that would decode it soonest, whoever sends it."""
        rows = []
        for replica in decodes:
            uncached = need.num_tokens - need.cached.get(replica.id, 0)
            wait_s, _, step_s = self._scorer.decode(need, replica, need.num_tokens - uncached)
            rows.append((wait_s + step_s, uncached * replica.kv_bytes_per_token, replica))
        rows.sort(key=lambda row: row[:2])
        nexts: dict[str, list[_Next]] = {}
        for gap_s, num_bytes, replica in rows:
            of_abi = nexts.setdefault(replica.kv_abi, [])
            if len(of_abi) < NEXTS:
                way = self._ways.split(need, replica)
                of_abi.append(_Next(replica, num_bytes, gap_s, way))
        return nexts

    def _split(
        self,
        need: Need,
        prefill: Replica,
        work_s: float,
        new_tokens: int,
        nexts: Sequence[_Next],
        late_s: float,
    ) -> Way:
        """With whoever costs least after the first token; `late_s` is counted besides."""
        name, chunk = prefill.id, prefill.step_tokens or new_tokens
        last = min(1.0, chunk / new_tokens) if new_tokens else 1.0
        itl_s = need.targets.itl_s
        best, best_after_s, best_gap_s = None, math.inf, math.inf
        for replica, num_bytes, step_s, way in nexts:
            transfer_s = self._latency.transfer_s(num_bytes, name, replica.id)
            if name in replica.quarantined:
                transfer_s *= 2  # inline, for now
            # bound early, it runs beside the prefill but for the last chunk's part
            gap_s = step_s + max(last * transfer_s, transfer_s - work_s)
            after_s = way.after_s + max(0.0, gap_s - itl_s)
            if best is None or (after_s, gap_s) < (best_after_s, best_gap_s):
                best, best_after_s, best_gap_s = way, after_s, gap_s
        if best is None:  # nobody decodes now: somebody will
            return Way(alone=False, after_s=late_s)
        return Way(False, best.decode, best_gap_s, best.itl_s, best_after_s + late_s)


def _late_s(need: Need, wait_s: float, work_s: float) -> float:
    """What is counted for the time beyond its TTFT target."""
    return LATE * max(0.0, wait_s + work_s - need.targets.ttft_s)
