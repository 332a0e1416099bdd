"""Every way that a request can go, side by side: each prefill replica with the decode replica that
would take its ticket soonest, and each replica that could do all of it alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from router.latency import LatencyModel
from router.placement.decision import Candidates, Need, Way
from router.placement.moment import Moment
from router.placement.ways import LATE, Ways, alone, few, split
from router.replica import Replica

PREFILLS = 12  # looked at: half of them the least loaded, half those that cache most
DECODES = 6  # the same
NEXTS = 2  # of these, for each prefill replica
ALONE = 4  # of those that would rather not
# A replica keeps to its role where it makes little difference: whoever decodes there next has an
# interest in that, and is not counted.
LEAST_GAIN = 0.1  # of the work
LEAST_GAIN_S = 2e-3

NOBODY = Way(alone=False)


class _Next(NamedTuple):
    """A decode replica that may take it: the gap but for the transfer."""

    replica: Replica
    num_bytes: int
    gap_s: float
    way: Way


class Joint:
    def __init__(self, latency: LatencyModel, ways: Ways, rng: random.Random) -> None:
        self._rng = rng
        self._latency = latency
        self._ways = ways

    def score(
        self,
        need: Need,
        prefills: Sequence[Replica],
        decodes: Sequence[Replica],
        both: Sequence[Replica],
        *,
        any_alone: bool = False,
    ) -> Candidates:
        """`both`: who is there to do both; `any_alone`: a few of the others may, too. No prefill
        replica stands here without somebody to decode, while anybody can do both."""
        hits, moment = need.cached, self._ways.moment(need)
        prefills = few(prefills, hits, PREFILLS, self._rng)
        decodes = few(decodes, hits, DECODES, self._rng)
        if any_alone:
            both = [*both, *few([*prefills, *decodes], hits, ALONE, self._rng)]
        nexts = _nexts(moment, need, decodes) if decodes else {}
        # Whose KV nobody could take has no way on, unless that is so of all of them.
        paired = [replica for replica in prefills if replica.kv_abi in nexts]
        prefills = paired if paired or both else prefills
        cached, waits, works = moment.prefills(prefills)
        columns = zip(prefills, cached, waits, works, strict=True)
        if paired:
            ways = [
                self._split(need, replica, hit, wait_s, work_s, nexts[replica.kv_abi])
                for replica, hit, wait_s, work_s in columns
            ]
        elif need.targets.ttft_s == math.inf:
            ways = [NOBODY] * len(prefills)
        else:  # nobody decodes now: somebody will
            late = [_late_s(need, wait_s, work_s) for _, _, wait_s, work_s in columns]
            ways = [Way(alone=False, after_s=late_s) if late_s else NOBODY for late_s in late]
        for replica in both:
            look = moment.look(replica)
            wait_s, work_s = moment.alone(look)
            wait_s += moment.room_s(look)
            more_s = _late_s(need, wait_s, work_s)
            if replica.role != "aggregated":
                more_s += LEAST_GAIN_S + LEAST_GAIN * work_s
            cached.append(look.cached)
            waits.append(wait_s)
            works.append(work_s)
            ways.append(alone(moment, look, need.targets, work_s, more_s))
        return Candidates([*prefills, *both], cached, waits, works, ways=ways)

    def _split(
        self,
        need: Need,
        prefill: Replica,
        hit: int,
        wait_s: float,
        work_s: float,
        nexts: Sequence[_Next],
    ) -> Way:
        """With whoever costs least after the first token."""
        late_s = _late_s(need, wait_s, work_s)
        name, new_tokens = prefill.id, need.num_tokens - hit
        chunk = prefill.step_tokens or new_tokens
        last = chunk / new_tokens if chunk < new_tokens else 1.0
        itl_s, transfer_of = need.targets.itl_s, self._latency.transfer_s
        best, best_after_s, best_gap_s = nexts[0].way, math.inf, math.inf
        for replica, num_bytes, step_s, way in nexts:
            transfer_s = transfer_of(num_bytes, name, replica.id)
            if name in replica.quarantined:
                transfer_s *= 2  # inline, for now
            # bound early, it runs beside the prefill but for the last chunk's part
            left_s, last_s = transfer_s - work_s, last * transfer_s
            gap_s = step_s + (left_s if left_s > last_s else last_s)
            after_s = way.after_s
            if gap_s > itl_s:
                after_s += gap_s - itl_s
            if (after_s, gap_s) < (best_after_s, best_gap_s):
                best, best_after_s, best_gap_s = way, after_s, gap_s
        return Way(False, best.decode, best_gap_s, best.itl_s, best_after_s + late_s)


def _nexts(moment: Moment, need: Need, decodes: Sequence[Replica]) -> dict[str, list[_Next]]:
    """By KV ABI, those that would decode it soonest, whoever sends it."""
    rows = [
        (wait_s + step_s, (need.num_tokens - hit) * replica.kv_bytes_per_token, place)
        for place, (replica, hit, wait_s, step_s) in enumerate(
            zip(decodes, *moment.decodes(decodes), strict=True)
        )
    ]
    rows.sort()
    nexts: dict[str, list[_Next]] = {}
    for gap_s, num_bytes, place in rows:
        replica = decodes[place]
        of_abi = nexts.setdefault(replica.kv_abi, [])
        if len(of_abi) < NEXTS:
            way = split(moment, moment.look(replica), need.targets)
            of_abi.append(_Next(replica, num_bytes, gap_s, way))
    return nexts


def _late_s(need: Need, wait_s: float, work_s: float) -> float:
    """What is counted for the time beyond its TTFT target."""
    late_s = wait_s + work_s - need.targets.ttft_s
    return LATE * late_s if late_s > 0.0 else 0.0
