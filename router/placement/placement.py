"""Filter, score, pick: one decision for one sequence."""

from __future__ import annotations

import random
from collections.abc import Iterable

from router.latency import LatencyModel
from router.placement.decision import Decision, Need, Phase, Refusal, Score
from router.placement.filters import refuse
from router.placement.scorers import AggregatedScorer, DecodeScorer, PrefillScorer, Scorer
from router.replica import Replica
from workers.core.roles import RoleName

TIE = 1.001  # predictions closer than this are equal; ties are drawn, so that nobody is flooded


class Placement:
    """Chooses the replica with the lowest predicted time. Knows no request and keeps no state."""

    def __init__(self, latency: LatencyModel, rng: random.Random) -> None:
        decode = DecodeScorer(latency)
        self._scorers: dict[tuple[Phase, RoleName], Scorer] = {
            ("prefill", "prefill"): PrefillScorer(latency),
            ("prefill", "aggregated"): AggregatedScorer(latency),
            ("decode", "decode"): decode,
            ("decode", "aggregated"): decode,
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
        scores = {r.id: self._scorers[need.phase, r.role].score(need, r) for r in able}
        chosen = self._pick(_preferred(need, able), scores)
        return Decision(chosen, need.cached.get(chosen.id, 0), scores, refused)

    def _pick(self, able: list[Replica], scores: dict[str, Score]) -> Replica:
        best = min(scores[replica.id].total_s for replica in able)
        ties = [replica for replica in able if scores[replica.id].total_s <= best * TIE]
        return self._rng.choice(ties)


def _preferred(need: Need, able: list[Replica]) -> list[Replica]:
    """Who has not failed it; of those, a ticket goes to an aggregated replica only where no decode
    replica is left, for its decodes wait for prompts."""
    fresh = [replica for replica in able if replica.incarnation not in need.avoid] or able
    if need.phase == "prefill":
        return fresh
    return [replica for replica in fresh if replica.role == "decode"] or fresh
