"""How good each replica would be for it, in predicted seconds: before its own work, and of it."""

from __future__ import annotations

from collections.abc import Sequence

from router.latency import LatencyModel
from router.placement.decision import Candidates, Need
from router.placement.ways import Ways
from router.replica import Replica

STEPS_UNTIL_FREE = 100  # decode steps until pages, or a place in the batch, come free


class Scorer:
    """Asks the latency model, one replica after the other."""

    def __init__(self, latency: LatencyModel, ways: Ways) -> None:
        self._latency = latency
        self._ways = ways

    def score(self, need: Need, replicas: Sequence[Replica]) -> Candidates:
        """Each for the phase alone, whatever follows it."""
        hits = need.cached
        cached = [hits.get(replica.id, 0) for replica in replicas]
        columns = zip(replicas, cached, strict=True)
        if need.phase == "prefill":
            pairs = [self.prefill(need, *candidate) for candidate in columns]
            return Candidates(replicas, cached, [w for w, _ in pairs], [s for _, s in pairs])
        rows = [self.decode(need, *candidate) for candidate in columns]
        waits, transfers = [wait + transfer for wait, transfer, _ in rows], [t for _, t, _ in rows]
        return Candidates(replicas, cached, waits, [step for _, _, step in rows], transfers)

    def prefill(self, need: Need, replica: Replica, cached: int) -> tuple[float, float]:
        """The queue of uncached tokens, then its own. Where it decodes too the step under way comes
        before both."""
        latency, name = self._latency, replica.id
        wait_s, decoding = self._ways.pending_s(replica), replica.decoding
        if decoding:
            wait_s += latency.decode_s(name, decoding, replica.decoding_kv)
        return wait_s, latency.prefill_s(name, need.num_tokens - cached, cached)

    def decode(self, need: Need, replica: Replica, cached: int) -> tuple[float, float, float]:
        """Waiting for pages and a place; fetching what it does not cache; its step with one
        sequence more."""
        name = replica.id
        kv_tokens = replica.decoding_kv + need.num_tokens
        step_s = self._latency.decode_s(name, replica.decoding + 1, kv_tokens)
        transfer_s = 0.0
        if need.sender is not None:
            num_bytes = (need.num_tokens - cached) * replica.kv_bytes_per_token
            transfer_s = self._latency.transfer_s(num_bytes, need.sender, name)
        wait_s = _short(need, replica, cached) * STEPS_UNTIL_FREE * step_s
        return wait_s, transfer_s, step_s

    def pages_s(self, need: Need, replica: Replica, cached: int) -> float:
        """Waiting for pages and a place."""
        short = _short(need, replica, cached)
        if not short:
            return 0.0
        step_s = self._latency.decode_s(replica.id, replica.decoding + 1, replica.decoding_kv)
        return short * STEPS_UNTIL_FREE * step_s


def _short(need: Need, replica: Replica, cached: int) -> float:
    """The part of its pages, and of all places, that must come free before it can decode there."""
    share = max(0, need.num_tokens - cached - replica.free_tokens) / need.num_tokens
    limit = replica.seqs_limit
    if limit and replica.decoding >= limit:
        share += (replica.decoding - limit + 1) / limit
    return share
