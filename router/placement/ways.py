"""What follows a prefill, for each way that a request can go: split over two replicas, or alone on
one. Weighed by the time between its tokens, and by what it does to those of others.

    after = max(0, gap - ITL target) + price(n + 1 sequences, with it) - price(n, without it)
              + LATE * max(0, wait + work - what is left of the TTFT target) + risk
    price(n, itl) = n * TOKENS * (NEAR * itl + max(0, itl - (1 - MARGIN) * target))

A sequence that gets a token each `itl` seconds costs a little (NEAR) for every second it is slower
within its target and all of it beyond: TTFT and the time of later tokens meet in seconds that
somebody waits. Where prompts are computed beside decodes, a part `duty` of the time goes to steps
that hold a chunk as well, and each step brings one token:

    1 / itl = duty / mixed_step + (1 - duty) / decode_step

That is a mean: `risk` is what few long prompts in between are expected to add beyond the target.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from router.latency import LatencyModel
from router.placement.decision import Need, Targets, Way
from router.placement.duty import Duty
from router.placement.moment import MARGIN, TOKENS, Look, Moment
from router.replica import Replica
from workers.core.clock import Clock

LATE = 5.0
QUEUED = 2048  # tokens of a prompt that waits, where only their sum is known
ASKED_AGAIN_S = 0.5  # for what changes slowly
LOGISTIC = math.sqrt(3) / math.pi  # scale of the logistic distribution whose deviation is 1


class Ways:
    """Remembers what was given by `duty`; makes the moment of each decision."""

    def __init__(self, latency: LatencyModel, clock: Clock) -> None:
        self.duty = Duty(clock)
        self._latency = latency
        self._clock = clock
        # when it was asked for, and seconds for a token that waits
        self._queued: dict[str, tuple[float, float]] = {}

    def moment(self, need: Need) -> Moment:
        return Moment(self._latency, self.duty, self._pending_s, need, self._clock.now())

    def pending_s(self, replica: Replica) -> float:
        """Of prompts that wait there, computed one after the other."""
        return self._pending_s(replica, self._clock.now())

    def burden_s(self, replica: Replica, targets: Targets) -> float:
        """What a prompt of QUEUED tokens would cost there, alone, beyond its own work: waiting, and
        how late it makes who decodes there. Slower within the target is no reason to wait."""
        moment = self.moment(Need("prefill", QUEUED, {}, targets=targets))
        look = moment.look(replica)
        seqs, with_it = look.seqs, look.kv_tokens + QUEUED
        if not seqs:
            return moment.queue_s(look)
        wait_s, work_s = moment.alone(look)
        itl_s = moment.between_s(look, seqs + 1, with_it, moment.step_s(look), work_s)
        late_s = max(0.0, itl_s - (1 - MARGIN) * targets.others_itl_s)
        return wait_s + work_s - moment.bare_s(look) + (seqs + 1) * TOKENS * late_s

    def given(self, replica: Replica, work_s: float) -> None:
        """It was chosen."""
        self.duty.given(replica.id, work_s)

    def keep(self, replicas: set[str]) -> None:
        """Forget all others."""
        self.duty.keep(replicas)
        self._queued = {name: kept for name, kept in self._queued.items() if name in replicas}

    def _pending_s(self, replica: Replica, now: float) -> float:
        pending = replica.foreign.pending_tokens + replica.assignments.pending_tokens
        if not pending:
            return 0.0
        then, token_s = self._queued.get(replica.id, (-math.inf, 0.0))
        if now - then > ASKED_AGAIN_S:
            token_s = self._latency.prefill_s(replica.id, QUEUED, 0) / QUEUED
            self._queued[replica.id] = now, token_s
        return pending * token_s


def split(moment: Moment, decode: Look, targets: Targets) -> Way:
    """`decode` takes its ticket, whoever sends it: the gap is but its step."""
    gap_s, itl_s, after_s = moment.after(decode, 0.0)
    if itl_s > gap_s:
        after_s += risk_s(itl_s, gap_s, moment.bare_s(decode), targets.itl_s)
    return Way(False, decode.replica, gap_s, itl_s, after_s)


def alone(moment: Moment, look: Look, targets: Targets, work_s: float, more_s: float) -> Way:
    """The replica goes on with what it has prefilled in `work_s`; `more_s` is counted besides."""
    gap_s, itl_s, after_s = moment.after(look, work_s)
    more_s += max(0.0, gap_s - targets.itl_s) + risk_s(itl_s, gap_s, work_s, targets.itl_s)
    return Way(True, None, gap_s, itl_s, after_s + more_s)


def risk_s(itl_s: float, step_s: float, work_s: float, target_s: float) -> float:
    """What is expected beyond the target less the margin, where the mean is not beyond it, or not
    as far. Prompts that come in between are few and come at random, each of about `work_s`: so what
    they add to TOKENS steps has the variance of that sum of them."""
    if itl_s <= step_s or work_s <= 0.0 or math.isinf(target_s):
        return 0.0
    scale_s = math.sqrt((itl_s - step_s) * work_s / TOKENS) * LOGISTIC
    over = abs(itl_s - (1 - MARGIN) * target_s) / scale_s
    return TOKENS * scale_s * math.log1p(math.exp(-over))


def few(
    replicas: Sequence[Replica], cached: Mapping[str, int], most: int, rng: random.Random
) -> Sequence[Replica]:
    """The least loaded, drawn among equals, and those that cache most: of many the others hardly
    win."""
    if len(replicas) <= most:
        return replicas
    draw, loads, holding = rng.random, [], []
    for place, replica in enumerate(replicas):
        ours, foreign = replica.assignments, replica.foreign  # no calls: there are many of them
        pending = foreign.pending_tokens + ours.pending_tokens
        loads.append((pending, foreign.seqs + ours.seqs, draw(), place))
        if replica.id in cached:
            holding.append((-cached[replica.id], place))
    loads.sort()
    holding.sort()
    places = [load[-1] for load in loads[: most // 2]]
    places += [place for _, place in holding[: most - most // 2]]
    return [replicas[place] for place in dict.fromkeys(places)]
