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

import random
from collections.abc import Mapping, Sequence
from heapq import nlargest, nsmallest
from typing import NamedTuple

from router.latency import LatencyModel
from router.placement.decision import Need, Targets, Way
from router.placement.duty import MOST, Duty
from router.replica import Replica
from workers.core.step_work import StepWork

TOKENS = 100  # of an answer that are still to come: nobody knows
NEAR = 0.1
LATE = 5.0
MARGIN = 0.1  # of an ITL target: a mean that is predicted to just keep it is missed by half of all
QUEUED = 2048  # tokens of a prompt that waits, where only their sum is known
CHUNK = 2048  # tokens of a step, where a replica has not said
LEAST_CHUNK = 16


class Loaded(NamedTuple):
    """A replica's decode load with one sequence more or less. `mixed_s`: a step that holds a chunk
    of `chunk` prompt tokens too."""

    seqs: int
    kv_tokens: int
    step_s: float
    chunk: int
    mixed_s: float

    def itl_s(self, duty: float) -> float:
        if duty <= 0:
            return self.step_s
        return 1 / (duty / self.mixed_s + (1 - duty) / self.step_s)


class Ways:
    """Asks the latency model; remembers what was given by `duty`."""

    def __init__(self, latency: LatencyModel, duty: Duty) -> None:
        self.duty = duty
        self._latency = latency

    def split(self, need: Need, decode: Replica, gap_s: float) -> Way:
        """`decode` takes its ticket."""
        kv_tokens = decode.decoding_kv + need.num_tokens
        way = self._way(need.targets, decode, kv_tokens, 0.0, gap_s)
        return way._replace(decode=decode)

    def alone(self, need: Need, replica: Replica, work_s: float) -> Way:
        """`replica` goes on with what it has prefilled in `work_s`."""
        kv_tokens = replica.decoding_kv + need.num_tokens
        return self._way(need.targets, replica, kv_tokens, work_s)._replace(alone=True)

    def alone_s(self, need: Need, replica: Replica, cached: int) -> tuple[float, float]:
        """Waiting and work where `replica` computes its prompt beside its own decodes, a chunk in
        each step."""
        new, pending = need.num_tokens - cached, replica.pending_tokens
        seqs = replica.decoding
        if seqs == 0:
            return self.pending_s(replica), self._latency.prefill_s(replica.id, new, cached)
        loaded = self.loaded(replica, seqs, replica.decoding_kv, cached + new // 2)
        steps = -(-new // loaded.chunk)
        queue_s = loaded.step_s / 2 + pending / loaded.chunk * loaded.mixed_s
        alone_s = self._latency.prefill_s(replica.id, new, cached)
        return queue_s, max(alone_s, (new / loaded.chunk) * loaded.mixed_s, steps * loaded.step_s)

    def loaded(self, replica: Replica, seqs: int, kv_tokens: int, context: int = 0) -> Loaded:
        """`context`: tokens that a chunk of a prompt stands behind."""
        step_s = self._latency.decode_s(replica.id, seqs, kv_tokens)
        chunk = max(LEAST_CHUNK, (replica.load.step_tokens or CHUNK) - seqs)
        work = StepWork.chunk(chunk, context)._replace(decode_seqs=seqs, decode_kv=kv_tokens)
        return Loaded(seqs, kv_tokens, step_s, chunk, self._latency.step_s(replica.id, work))

    def pending_s(self, replica: Replica) -> float:
        """Of prompts that wait there, computed one after the other."""
        pending = replica.pending_tokens
        return self._latency.prefill_s(replica.id, QUEUED, 0) * pending / QUEUED if pending else 0.0

    def burden_s(self, replica: Replica, targets: Targets) -> float:
        """What a prompt of QUEUED tokens would cost there, alone, beyond its own work."""
        need = Need("prefill", QUEUED, {}, targets=targets)
        bare_s = self._latency.prefill_s(replica.id, QUEUED, 0)
        wait_s, work_s = self.alone_s(need, replica, 0)
        return wait_s + work_s - bare_s + self.alone(need, replica, work_s).after_s

    def _duty(self, replica: Replica, step_s: float, more_s: float) -> float:
        """Of the last while, or of the next: a queue keeps it busy, whatever was before."""
        soon = (self.pending_s(replica) + more_s) / (TOKENS * step_s)
        return min(MOST, max(self.duty.part(replica.id, more_s), soon))

    def _way(
        self,
        targets: Targets,
        replica: Replica,
        kv_tokens: int,
        work_s: float,
        gap_s: float | None = None,
    ) -> Way:
        """`work_s`: of its prompt, there. `gap_s` None = one step."""
        seqs = replica.decoding
        then = self.loaded(replica, seqs + 1, kv_tokens)
        itl_s = then.itl_s(self._duty(replica, then.step_s, work_s))
        if gap_s is None:
            gap_s = then.step_s
        after_s = max(0.0, gap_s - targets.itl_s) + price(1, itl_s, targets.itl_s)
        if seqs:
            now = self.loaded(replica, seqs, replica.decoding_kv)
            others_s = targets.others_itl_s
            before_s = now.itl_s(self._duty(replica, now.step_s, 0.0))
            after_s += price(seqs, itl_s, others_s) - price(seqs, before_s, others_s)
        return Way(False, None, gap_s, itl_s, max(0.0, after_s))


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
    idle = nsmallest(most // 2, replicas, key=lambda r: (r.pending_tokens, r.num_seqs, draw()))
    holding = [replica for replica in replicas if replica.id in cached]
    holders = nlargest(most - most // 2, holding, key=lambda r: cached[r.id])
    return list(dict.fromkeys((*idle, *holders)))
