"""How good each replica would be for it, in predicted seconds: before its own work, and of it."""

from __future__ import annotations

from collections.abc import Sequence

from router.latency import LatencyModel
from router.placement.decision import Candidates, Need
from router.replica import Replica

QUEUED = 2048  # tokens of a prompt that waits, where only their sum is known
STEPS_UNTIL_FREE = 100  # decode steps until pages come free


class Scorer:
    """Asks the latency model for all candidates at once."""

    def __init__(self, latency: LatencyModel) -> None:
        self._latency = latency

    def score(self, need: Need, replicas: Sequence[Replica]) -> Candidates:
        hits = need.cached
        cached = [hits.get(replica.id, 0) for replica in replicas]
        columns = zip(replicas, cached, strict=True)
        if need.phase == "prefill":
            pairs = [self._prefill(need, *candidate) for candidate in columns]
            return Candidates(replicas, cached, [w for w, _ in pairs], [s for _, s in pairs])
        rows = [self._decode(need, *candidate) for candidate in columns]
        waits, transfers = [wait + transfer for wait, transfer, _ in rows], [t for _, t, _ in rows]
        return Candidates(replicas, cached, waits, [step for _, _, step in rows], transfers)

    def _prefill(self, need: Need, replica: Replica, cached: int) -> tuple[float, float]:
        """The queue of uncached tokens, then its own. On an aggregated replica the decode step
        under way comes before both: decodes share its steps."""
        latency, name = self._latency, replica.id
        pending = replica.pending_tokens
        wait_s = latency.prefill_s(name, QUEUED, 0) * pending / QUEUED if pending else 0.0
        if replica.role == "aggregated":
            wait_s += latency.decode_s(name, replica.num_seqs, replica.kv_tokens)
        return wait_s, latency.prefill_s(name, need.num_tokens - cached, cached)

    def _decode(self, need: Need, replica: Replica, cached: int) -> tuple[float, float, float]:
        """If pages are short, the steps until some come free; fetching what it does not cache; its
        step with one sequence more."""
        latency, name = self._latency, replica.id
        step_s = latency.decode_s(name, replica.num_seqs + 1, replica.kv_tokens + need.num_tokens)
        uncached = need.num_tokens - cached
        share = max(0, uncached - replica.free_tokens) / need.num_tokens
        transfer_s = 0.0
        if need.sender is not None:
            num_bytes = uncached * replica.load.kv_bytes_per_token
            transfer_s = latency.transfer_s(num_bytes, need.sender, name)
        return share * STEPS_UNTIL_FREE * step_s, transfer_s, step_s
