"""How good a replica would be for it, in predicted seconds."""

from __future__ import annotations

from typing import Protocol

from router.latency import LatencyModel
from router.placement.decision import Need, Score
from router.replica import Replica


class Scorer(Protocol):
    def score(self, need: Need, replica: Replica) -> Score: ...


class PrefillScorer:
    """Its queue of uncached tokens, then the request's own uncached tokens."""

    def __init__(self, latency: LatencyModel) -> None:
        self._latency = latency

    def score(self, need: Need, replica: Replica) -> Score:
        cached = need.cached.get(replica.id, 0)
        return Score(
            wait_s=self._latency.prefill_s(replica.id, replica.pending_tokens, 0),
            work_s=self._latency.prefill_s(replica.id, need.num_tokens - cached, cached),
        )


class AggregatedScorer:
    """As for prefill, behind the decode step that is under way: its decodes share its steps."""

    def __init__(self, latency: LatencyModel) -> None:
        self._latency = latency
        self._prefill = PrefillScorer(latency)

    def score(self, need: Need, replica: Replica) -> Score:
        alone = self._prefill.score(need, replica)
        step_s = self._latency.decode_s(replica.id, replica.num_seqs, replica.kv_tokens)
        return Score(wait_s=alone.wait_s + step_s, work_s=alone.work_s)


class DecodeScorer:
    """Its step with one sequence more; if pages are short, the steps until some come free."""

    def __init__(self, latency: LatencyModel, steps_until_free: int = 100) -> None:
        self._latency = latency
        self._steps_until_free = steps_until_free

    def score(self, need: Need, replica: Replica) -> Score:
        step_s = self._latency.decode_s(
            replica.id, replica.num_seqs + 1, replica.kv_tokens + need.num_tokens
        )
        missing = need.num_tokens - need.cached.get(replica.id, 0) - replica.free_tokens
        share = max(0, missing) / need.num_tokens
        return Score(wait_s=share * self._steps_until_free * step_s, work_s=step_s)
