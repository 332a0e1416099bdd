"""Filter, score, pick: one decision for one sequence."""

from __future__ import annotations

import random
from collections.abc import Iterable

from router.latency import LatencyModel
from router.placement.decision import Decision, Need, Refusal
from router.placement.filters import refuse
from router.placement.policies.cached import Soonest
from router.placement.policies.kvasir import Kvasir
from router.placement.policies.policy import Policy
from router.placement.scorers import Scorer
from router.replica import Replica
from workers.core.clock import SystemClock


class Placement:
    """Chooses a replica for each sequence. `policy` chooses among those that can prefill it (None =
    Kvasir's own); a decode goes where its predicted time is lowest. Knows no request."""

    def __init__(
        self, latency: LatencyModel, rng: random.Random, policy: Policy | None = None
    ) -> None:
        self._scorer = Scorer(latency)
        self._prefill = Kvasir(rng, SystemClock()) if policy is None else policy
        self._decode = Soonest(rng)

    def place(self, need: Need, replicas: Iterable[Replica]) -> Decision | None:
        """None: nobody can take it now."""
        refused: dict[str, Refusal] = {}
        able: list[Replica] = []
        slow: list[Replica] = []
        for replica in replicas:
            why = refuse(need, replica)
            if why is None:
                able.append(replica)
            elif why is Refusal.QUARANTINED:
                slow.append(replica)
            else:
                refused[replica.id] = why
        if able:
            refused.update((replica.id, Refusal.QUARANTINED) for replica in slow)
        able = able or slow
        if not able:
            return None
        preferred = _preferred(need, able)
        if len(preferred) < len(able):
            left = (replica for replica in able if replica not in preferred)
            refused.update((replica.id, _passed_over(need, replica)) for replica in left)
        among = self._scorer.score(need, preferred)
        policy = self._prefill if need.phase == "prefill" else self._decode
        chosen = policy.choose(need, among)
        return Decision(among.replicas[chosen], among.cached[chosen], among, refused)


def _preferred(need: Need, able: list[Replica]) -> list[Replica]:
    """Who has not failed it; of those, a ticket goes to an aggregated replica only where no decode
    replica is left, for its decodes wait for prompts."""
    fresh = [replica for replica in able if replica.incarnation not in need.avoid] or able
    if need.phase == "prefill":
        return fresh
    return [replica for replica in fresh if replica.role == "decode"] or fresh


def _passed_over(need: Need, replica: Replica) -> Refusal:
    failed = replica.incarnation in need.avoid
    return Refusal.FAILED_IT if failed else Refusal.AGGREGATED
