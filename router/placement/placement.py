"""Filter, score, pick: one decision for one sequence."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Literal

from router.latency import LatencyModel
from router.placement.decision import Candidates, Decision, Need, Phase, Refusal
from router.placement.filters import refuse, takers
from router.placement.joint import Joint
from router.placement.policies.cached import Soonest
from router.placement.policies.kvasir import Kvasir
from router.placement.policies.policy import Policy
from router.placement.scorers import Scorer
from router.placement.ways import Ways
from router.replica import Replica
from workers.core.clock import Clock, SystemClock
from workers.core.roles import RoleName

Disaggregation = Literal["auto", "remote", "local"]

FORGET_AT = 2  # times the replicas that are there


class Placement:
    """Chooses a replica for each sequence, and for a new one the way it goes. Knows no request.

    `policy` chooses among those that can prefill it (None = Kvasir's own, the only one that weighs
    ways); a decode goes where its predicted time is lowest. `disaggregation`: whether a prompt may
    be computed where it is decoded: as predicted (auto), only on aggregated replicas (remote), or
    always (local).
    """

    def __init__(
        self,
        latency: LatencyModel,
        rng: random.Random,
        policy: Policy | None = None,
        *,
        disaggregation: Disaggregation = "remote",
        clock: Clock | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self.ways = Ways(latency, clock)
        self._scorer = Scorer(latency, self.ways)
        self._joint = Joint(latency, self.ways, rng)
        self._prefill = Kvasir(rng, clock) if policy is None else policy
        self._decode = Soonest(rng)
        self._weighs = isinstance(self._prefill, Kvasir)
        self.disaggregation: Disaggregation = disaggregation
        if not self._weighs and disaggregation == "auto":
            self.disaggregation = "remote"

    def serves(self, replica: Replica, phase: Phase) -> bool:
        """Whether such work goes to replicas of its role."""
        if phase == "decode":
            return replica.role != "prefill"
        return replica.role != "decode" or self.disaggregation != "remote"

    @property
    def any_alone(self) -> bool:
        """Whether a replica of any role may go on with what it has prefilled."""
        return self.disaggregation != "remote"

    def refuse(self, need: Need, replica: Replica) -> Refusal | None:
        """Why this replica cannot take it; None = it can."""
        return refuse(need, replica) if self.serves(replica, need.phase) else Refusal.ROLE

    def place(self, need: Need, replicas: Iterable[Replica]) -> Decision | None:
        """None: nobody can take it now."""
        replicas = list(replicas)
        able, refused = self._able(need, replicas)
        if not able:
            return None
        if need.phase == "decode":
            return self._redeem(need, able, refused)
        among = self._score(need, able, replicas)
        place = self._prefill.choose(need, among)
        self._given(among, place, replicas)
        return Decision(among, place, refused)

    def _able(
        self, need: Need, replicas: list[Replica]
    ) -> tuple[list[Replica], dict[str, Refusal]]:
        """Those that have not failed it, if there are any; in quarantine only where all are."""
        serving, refused = self._serving(need.phase, replicas)
        able = takers(need, serving)
        if len(able) < len(serving):
            able = _told(need, serving, able, refused)
        if not need.avoid:
            return able, refused
        fresh = [replica for replica in able if replica.incarnation not in need.avoid] or able
        _pass_over(refused, able, fresh, Refusal.FAILED_IT)
        return fresh, refused

    def _serving(
        self, phase: Phase, replicas: list[Replica]
    ) -> tuple[list[Replica], dict[str, Refusal]]:
        """Those whose role it is, and what the others are refused for."""
        if phase == "prefill" and self.disaggregation != "remote":
            return replicas, {}
        other = "prefill" if phase == "decode" else "decode"
        serving = [replica for replica in replicas if replica.role != other]
        if len(serving) == len(replicas):
            return serving, {}
        return serving, {r.id: Refusal.ROLE for r in replicas if r.role == other}

    def _score(self, need: Need, able: list[Replica], replicas: list[Replica]) -> Candidates:
        if self.disaggregation == "local":
            return self._joint.score(need, (), (), able)
        if not self._weighs:
            return self._scorer.score(need, able)
        prefills, decodes, both = _by_role(able)
        if self.disaggregation == "auto":
            return self._joint.score(need, prefills, decodes, both, any_alone=True)
        decodes = takers(need, [replica for replica in replicas if replica.role == "decode"])
        # where nobody only decodes, a ticket goes to those who do both
        return self._joint.score(need, prefills, decodes or both, both)

    def _redeem(self, need: Need, able: list[Replica], refused: dict[str, Refusal]) -> Decision:
        """A ticket goes to an aggregated replica only where no decode replica is left, for its
        decodes wait for prompts."""
        preferred = [replica for replica in able if replica.role == "decode"] or able
        _pass_over(refused, able, preferred, Refusal.AGGREGATED)
        among = self._scorer.score(need, preferred)
        return Decision(among, self._decode.choose(need, among), refused)

    def _given(self, among: Candidates, place: int, there: Sequence[Replica]) -> None:
        self.ways.given(among.replicas[place], among.work_s[place])
        if len(self.ways.duty) > FORGET_AT * len(there):
            self.ways.keep({replica.id for replica in there})


def _by_role(replicas: Sequence[Replica]) -> tuple[list[Replica], list[Replica], list[Replica]]:
    """Those that prefill, that decode, that do both."""
    of: dict[RoleName, list[Replica]] = {"prefill": [], "decode": [], "aggregated": []}
    for replica in replicas:
        of[replica.role].append(replica)
    return of["prefill"], of["decode"], of["aggregated"]


def _told(
    need: Need, replicas: list[Replica], able: list[Replica], refused: dict[str, Refusal]
) -> list[Replica]:
    """Says why the others are not able; where nobody is, whom only the pair is against must do."""
    taken = {replica.id for replica in able}
    slow: list[Replica] = []
    for replica in replicas:
        why = None if replica.id in taken else refuse(need, replica)
        if why is Refusal.QUARANTINED:
            slow.append(replica)
        elif why is not None:
            refused[replica.id] = why
    if not able:
        return slow
    refused.update((replica.id, Refusal.QUARANTINED) for replica in slow)
    return able


def _pass_over(
    refused: dict[str, Refusal],
    before: Sequence[Replica],
    after: Sequence[Replica],
    why: Refusal,
) -> None:
    if len(after) < len(before):
        kept = {replica.id for replica in after}
        refused.update((replica.id, why) for replica in before if replica.id not in kept)
