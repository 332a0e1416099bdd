"""How many decode servers keep the ITL target, and hold the KV, at some rate."""

from __future__ import annotations

import math
from functools import cache

from cluster.planner.mix import ClassMix, Mix
from cluster.planner.queueing import normal_cdf
from cluster.planner.signals import PoolSpec
from router.flow.classes import SloConfig
from router.flow.tuning import largest
from router.latency import LatencyModel

MARGIN = 0.1  # of an ITL target, as the router keeps
KV_SHARE = 0.95  # of the pages that sequences may hold


class DecodeModel:
    """`batch`: the most sequences of a server that keep the tightest target and fit its memory (its
    memory alone where not even one would keep it); `bound`: what limits it. Sequences at one time
    are requests a second times how long each stays (Little), about normal with the variance that
    arrivals bring."""

    def __init__(
        self, mix: Mix, latency: LatencyModel, pool: PoolSpec, slo: SloConfig, transfer_s: float = 0
    ) -> None:
        self.output = sum(each.share * each.outputs.mean for each in mix.classes)
        held = sum(each.share * _token_steps(each) for each in mix.classes)
        # KV of a sequence at a random moment of its decoding: longer answers are met more often.
        self.context = held / self.output if self.output else 1.0
        context = max(1, math.ceil(self.context))
        targets = [slo.classes[e.slo_class].itl for e in mix.classes if e.slo_class in slo.classes]
        self.target_s = min((t for t in targets if t is not None), default=None)
        by_memory = int(KV_SHARE * pool.kv_tokens / context) if pool.kv_tokens else pool.max_seqs
        self.batch, self.bound = pool.max_seqs, "max_seqs"
        if by_memory < self.batch:
            self.batch, self.bound = max(1, by_memory), "KV memory"
        within_s = math.inf if self.target_s is None else self.target_s * (1 - MARGIN)
        self.keeps_target = latency.decode_s(pool.model, 1, context) <= within_s
        if self.target_s is not None and self.keeps_target:
            in_time = largest(
                lambda count: latency.decode_s(pool.model, count, count * context) <= within_s,
                1,
                max(1, self.batch),
            )
            if in_time < self.batch:
                self.batch, self.bound = in_time, "ITL"
        self.step_s = latency.decode_s(pool.model, self.batch, self.batch * context)
        self._stay_s = self.output * self.step_s + transfer_s
        self._peaks = 1.0 + (mix.bursts - 1.0) / 2
        self.attainment = cache(self._attainment)

    def sequences(self, rate: float) -> float:
        """At one time, at the slowest step that is allowed."""
        return rate * self._stay_s

    def busy(self, servers: int, rate: float) -> float:
        """Part of the places in batches."""
        return self.sequences(rate) / (servers * self.batch) if servers else float(rate > 0)

    def _attainment(self, servers: int, rate: float) -> float:
        """Part of the time in which all sequences have a place."""
        if rate <= 0:
            return 1.0
        if servers <= 0:
            return 0.0
        mean = self.sequences(rate)
        room = servers * self.batch - mean
        return normal_cdf(room / math.sqrt(mean * self._peaks))


def _token_steps(each: ClassMix) -> float:
    """Tokens held, summed over the steps of one answer."""
    return each.outputs.mean * each.prompts.mean + each.outputs.mean_square / 2
