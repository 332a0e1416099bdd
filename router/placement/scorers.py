"""How good each replica would be for it, in predicted seconds: before its own work, and of it."""

from __future__ import annotations

from collections.abc import Sequence

from router.latency import LatencyModel
from router.placement.decision import Candidates, Need
from router.placement.ways import Ways
from router.replica import Replica


class Scorer:
    """Asks the latency model, one replica after the other."""

    def __init__(self, latency: LatencyModel, ways: Ways) -> None:
        self._latency = latency
        self._ways = ways

    def score(self, need: Need, replicas: Sequence[Replica]) -> Candidates:
        """Each for the phase alone, whatever follows it."""
        moment = self._ways.moment(need)
        if need.phase == "prefill":
            return Candidates(replicas, *moment.prefills(replicas))
        cached, waits, steps = moment.decodes(replicas)
        transfers = [0.0] * len(replicas)
        if need.sender is not None:  # fetching what it does not cache
            transfer_s, sender = self._latency.transfer_s, need.sender
            transfers = [
                transfer_s((need.num_tokens - hit) * r.kv_bytes_per_token, sender, r.id)
                for r, hit in zip(replicas, cached, strict=True)
            ]
            waits = [wait_s + t for wait_s, t in zip(waits, transfers, strict=True)]
        return Candidates(replicas, cached, waits, steps, transfers)
