"""Filter, score, pick: one decision for one sequence."""

from __future__ import annotations

import random
from collections.abc import Iterable

from router.latency import LatencyModel
from router.placement.decision import Decision, Need, Refusal, Score
from router.placement.filters import refuse
from router.placement.scorers import DecodeScorer, PrefillScorer, Scorer
from router.replica import Replica

TIE = 1.001  # predictions closer than this are equal; ties are drawn, so that nobody is flooded


class Placement:
    """Chooses the replica with the lowest predicted time. Knows no request and keeps no state."""

    def __init__(self, latency: LatencyModel, rng: random.Random) -> None:
        self._scorers: dict[str, Scorer] = {
            "prefill": PrefillScorer(latency),
            "decode": DecodeScorer(latency),
        }
        self._rng = rng

    def place(self, need: Need, replicas: Iterable[Replica]) -> Decision | None:
        """None: nobody can take it now."""
        refused: dict[str, Refusal] = {}
        able: list[Replica] = []
        for replica in replicas:
            why = refuse(need, replica)
            if why is None:
                able.append(replica)
            else:
                refused[replica.id] = why
        if not able:
            return None
        scorer = self._scorers[need.role]
        scores = {replica.id: scorer.score(need, replica) for replica in able}
        chosen = self._pick([r for r in able if r.incarnation not in need.avoid] or able, scores)
        return Decision(chosen, need.cached.get(chosen.id, 0), scores, refused)

    def _pick(self, able: list[Replica], scores: dict[str, Score]) -> Replica:
        best = min(scores[replica.id].total_s for replica in able)
        ties = [replica for replica in able if scores[replica.id].total_s <= best * TIE]
        return self._rng.choice(ties)
