"""What follows a prefill, for each way that a request can go: split over two replicas, or alone on
one. Weighed by the time between its tokens, and by what it does to those of others.

    after = max(0, gap - ITL target) + price(n + 1 sequences, with it) - price(n, without it)
              + LATE * max(0, wait + work - what is left of the TTFT target)
    price(n, itl) = n * TOKENS * (NEAR * itl + max(0, itl - (1 - MARGIN) * target))

A sequence that gets a token each `itl` seconds costs a little (NEAR) for every second it is slower
within its target and all of it beyond: TTFT and the time of later tokens meet in seconds that
somebody waits. Where prompts are computed beside decodes, a part `duty` of the time goes to steps
that hold a chunk as well, and each step brings one token:

    1 / itl = duty / mixed_step + (1 - duty) / decode_step
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from router.latency import LatencyModel
from router.placement.decision import Need, Targets, Way
from router.placement.duty import MOST, Duty
from router.replica import Replica
from workers.core.clock import Clock
from workers.core.step_work import StepWork

TOKENS = 100  # of an answer that are still to come: nobody knows
NEAR = 0.1
LATE = 5.0
MARGIN = 0.1  # of an ITL target: a mean that is predicted to just keep it is missed by half of all
QUEUED = 2048  # tokens of a prompt that waits, where only their sum is known
CHUNK = 2048  # tokens of a step, where a replica has not said
LEAST_CHUNK = 16
ASKED_AGAIN_S = 0.5  # for what changes slowly


class Ways:
    """Asks the latency model; remembers what was given by `duty`."""

    def __init__(self, latency: LatencyModel, clock: Clock) -> None:
        self.duty = Duty(clock)
        self._latency = latency
        self._clock = clock
        # when it was asked for, and seconds for a token that waits
        self._queued: dict[str, tuple[float, float]] = {}

    def split(self, need: Need, decode: Replica) -> Way:
        """`decode` takes its ticket, whoever sends it: the gap is but its step."""
        return Way(False, decode, *self._after(need, decode, 0.0))

    def alone(self, need: Need, replica: Replica, work_s: float, more_s: float = 0.0) -> Way:
        """`replica` goes on with what it has prefilled in `work_s`; `more_s` is counted besides."""
        gap_s, itl_s, after_s = self._after(need, replica, work_s)
        after_s += more_s + max(0.0, gap_s - need.targets.itl_s)
        return Way(True, None, gap_s, itl_s, after_s)

    def alone_s(self, need: Need, replica: Replica, cached: int) -> tuple[float, float]:
        """Waiting and work where `replica` computes its prompt beside its own decodes, a chunk in
        each step."""
        new, seqs = need.num_tokens - cached, replica.decoding
        bare_s = self._latency.prefill_s(replica.id, new, cached)
        if seqs == 0:
            return self.pending_s(replica), bare_s
        kv_tokens = replica.decoding_kv
        step_s = self._latency.decode_s(replica.id, seqs, kv_tokens)
        chunk, mixed_s = self._mixed(replica, seqs, kv_tokens, cached + new // 2)
        queue_s = step_s / 2 + replica.pending_tokens / chunk * mixed_s
        return queue_s, max(bare_s, new / chunk * mixed_s)

    def pending_s(self, replica: Replica) -> float:
        """Of prompts that wait there, computed one after the other."""
        pending = replica.pending_tokens
        if not pending:
            return 0.0
        now = self._clock.now()
        then, token_s = self._queued.get(replica.id, (-math.inf, 0.0))
        if now - then > ASKED_AGAIN_S:
            token_s = self._latency.prefill_s(replica.id, QUEUED, 0) / QUEUED
            self._queued[replica.id] = now, token_s
        return pending * token_s

    def burden_s(self, replica: Replica, targets: Targets) -> float:
        """What a prompt of QUEUED tokens would cost there, alone, beyond its own work: waiting, and
        how late it makes who decodes there. Slower within the target is no reason to wait."""
        seqs = replica.decoding
        if not seqs:
            return self.pending_s(replica)
        need = Need("prefill", QUEUED, {}, targets=targets)
        bare_s = self._latency.prefill_s(replica.id, QUEUED, 0)
        wait_s, work_s = self.alone_s(need, replica, 0)
        queue_s, with_it = self.pending_s(replica), replica.decoding_kv + QUEUED
        _, itl_s = self._steps(replica, seqs + 1, with_it, queue_s, work_s)
        late_s = max(0.0, itl_s - (1 - MARGIN) * targets.others_itl_s)
        return wait_s + work_s - bare_s + (seqs + 1) * TOKENS * late_s

    def given(self, replica: Replica, work_s: float) -> None:
        """It was chosen."""
        self.duty.given(replica.id, work_s)

    def keep(self, replicas: set[str]) -> None:
        """Forget all others."""
        self.duty.keep(replicas)
        self._queued = {name: kept for name, kept in self._queued.items() if name in replicas}

    def _after(self, need: Need, replica: Replica, work_s: float) -> tuple[float, float, float]:
        """Its first gap, its ITL and what is counted, where `replica` decodes it; `work_s`: of its
        prompt, there."""
        seqs, kv_tokens, targets = replica.decoding, replica.decoding_kv, need.targets
        queue_s = self.pending_s(replica)
        with_it = kv_tokens + need.num_tokens
        step_s, itl_s = self._steps(replica, seqs + 1, with_it, queue_s, work_s)
        after_s = price(1, itl_s, targets.itl_s)
        if seqs:
            _, before_s = self._steps(replica, seqs, kv_tokens, queue_s, 0.0)
            others_s = targets.others_itl_s
            after_s += price(seqs, itl_s, others_s) - price(seqs, before_s, others_s)
        return step_s, itl_s, max(0.0, after_s)

    def _steps(
        self, replica: Replica, seqs: int, kv_tokens: int, queue_s: float, more_s: float
    ) -> tuple[float, float]:
        """A step of its decodes, and the mean time between their tokens: of the last while, or of
        the next, as a queue of prompts keeps it busy, whatever was before."""
        step_s = self._latency.decode_s(replica.id, seqs, kv_tokens)
        soon = (queue_s + more_s) / (TOKENS * step_s)
        duty = min(MOST, max(self.duty.part(replica.id, more_s), soon))
        if duty <= 0:
            return step_s, step_s
        _, mixed_s = self._mixed(replica, seqs, kv_tokens, 0)
        return step_s, 1 / (duty / mixed_s + (1 - duty) / step_s)

    def _mixed(
        self, replica: Replica, seqs: int, kv_tokens: int, context: int
    ) -> tuple[int, float]:
        """Prompt tokens in a step that holds a chunk too, and how long it takes. `context`: tokens
        that the chunk stands behind."""
        chunk = max(LEAST_CHUNK, (replica.step_tokens or CHUNK) - seqs)
        pairs = chunk * context + chunk * (chunk + 1) // 2
        work = StepWork(chunk, context + chunk, pairs, seqs, kv_tokens)
        return chunk, self._latency.step_s(replica.id, work)


def price(seqs: int, itl_s: float, target_s: float) -> float:
    """Seconds that `seqs` sequences wait for tokens, as placement counts them."""
    return seqs * TOKENS * (NEAR * itl_s + max(0.0, itl_s - (1 - MARGIN) * target_s))


def few(
    replicas: Sequence[Replica], cached: Mapping[str, int], most: int, rng: random.Random
) -> Sequence[Replica]:
    """The least loaded, drawn among equals, and those that cache most: of many the others hardly
    win."""
    if len(replicas) <= most:
        return replicas
    draw = rng.random
    loads = [(r.pending_tokens, r.num_seqs, draw(), place) for place, r in enumerate(replicas)]
    loads.sort()
    holding = [(-cached[r.id], place) for place, r in enumerate(replicas) if r.id in cached]
    holding.sort()
    places = [load[-1] for load in loads[: most // 2]]
    places += [place for _, place in holding[: most - most // 2]]
    return [replicas[place] for place in dict.fromkeys(places)]
