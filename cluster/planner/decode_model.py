"""How many decode servers keep the ITL target, and hold the KV, at some rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

from cluster.planner.mix import Mix
from cluster.planner.queueing import Wait
from cluster.planner.signals import PoolSpec
from router.flow.classes import SloConfig
from router.flow.tuning import largest
from router.latency import LatencyModel

MARGIN = 0.1  # of an ITL target, as the router keeps
MOST_BUSY = 0.95  # of the places
KV_SHARE = 0.95  # of the pages that sequences may hold


class DecodeModel:
    """`batch`: the most sequences of a server that keep the tightest target and fit its memory (its
    memory alone where not even one would keep it); `bound`: what limits it. All places in batches
    are the servers of one queue, each taken for as long as an answer takes at the slowest step that
    is allowed. Who waits for one has a gap after the first token, which the mean ITL of a long
    answer bears and that of a short one does not."""

    def __init__(self, mix: Mix, latency: LatencyModel, pool: PoolSpec, slo: SloConfig) -> None:
        self.output = sum(each.share * each.outputs.mean for each in mix.classes)
        held = sum(each.share * each.token_steps for each in mix.classes)
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
        self._stay_s = self.output * self.step_s
        square = sum(each.share * each.outputs.mean_square for each in mix.classes)
        self._cs2 = max(0.0, square / self.output**2 - 1.0) if self.output else 0.0
        self._ca2 = mix.bursts
        self._patience = list(self._patient(mix))
        self.attainment = cache(self._attainment)

    def _patient(self, mix: Mix) -> Iterator[tuple[float, float]]:
        """Share of requests, and how long they may wait for a place."""
        if self.target_s is None or not self.keeps_target:
            return
        for each in mix.classes:
            for tokens, weight in each.outputs:
                share = each.share * weight / each.outputs.weight
                yield share, max(0.0, (tokens - 1.0) * (self.target_s - self.step_s))

    def sequences(self, rate: float) -> float:
        """At one time, at the slowest step that is allowed."""
        return rate * self._stay_s

    def busy(self, servers: int, rate: float) -> float:
        """Part of the places in batches."""
        return self.sequences(rate) / (servers * self.batch) if servers else float(rate > 0)

    def _attainment(self, servers: int, rate: float) -> float:
        """Part of requests whose mean ITL is within the target; it falls with the rate and rises
        with the servers."""
        if rate <= 0:
            return 1.0
        if self.busy(servers, rate) >= MOST_BUSY:
            return 0.0
        wait = Wait(servers * self.batch, rate, self._stay_s, self._ca2, self._cs2)
        return 1.0 - sum(share * wait.beyond(patience_s) for share, patience_s in self._patience)
