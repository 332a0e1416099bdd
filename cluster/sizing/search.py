"""The cheapest plan that holds the SLO: arithmetic proposes, the simulator decides.

A few candidates of both kinds are played; each grows until it holds and then shrinks while it does.
The number of runs is bounded, and so is the number of requests in one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cluster.sizing.candidate import Candidate, PoolName
from cluster.sizing.load import Load
from cluster.sizing.measure import Measured, measure
from cluster.sizing.question import Question
from cluster.sizing.screen import Screen, Screened

APART, TOGETHER = 3, 2  # candidates of each kind that are played
PARTS = (0.5, 0.75)  # of the load, that cheaper points of the front are sized for
STEP = 0.12  # of a pool, by which it grows; shrinking begins with as much

Told = Callable[[Candidate, int], None]  # what is played now, and how many runs are left


@dataclass(frozen=True, slots=True)
class Answer:
    """`apart`, `together`: the cheapest of each kind that held the SLO, None where none did.
    `screened`: by arithmetic, cheapest first. `spent`: the runs ran out before the search ended."""

    screened: Sequence[Screened]
    measured: Sequence[Measured]
    apart: Measured | None
    together: Measured | None
    spent: bool

    @property
    def best(self) -> Measured | None:
        return cheapest(each for each in (self.apart, self.together) if each is not None)

    @property
    def nearest(self) -> Measured:
        """The best that was seen where nothing holds."""
        return max(self.measured, key=lambda each: (each.attainment, -each.candidate.cost))

    @property
    def front(self) -> list[Measured]:
        """Of all that were played, those for which nothing cheaper serves as many well."""
        found: list[Measured] = []
        for each in sorted(self.measured, key=lambda m: (m.candidate.cost, -m.goodput)):
            if not found or each.goodput > found[-1].goodput:
                found.append(each)
        return found


def search(question: Question, load: Load, screen: Screen, runs: int, told: Told) -> Answer:
    """At most `runs` simulations."""
    apart, together = screen.apart(), screen.together()
    seen = _Runs(question, load, runs, told)
    starts = _starts(apart, together)
    for place, start in enumerate(starts):
        share = max(1, (seen.left - len(PARTS)) // (len(starts) - place))
        _settle(seen, screen, start, max(len(PARTS), seen.left - share))
    spent = seen.left <= len(PARTS)
    for part in PARTS:
        less = [*screen.apart(part)[:1], *screen.together(part)[:1]]
        for each in sorted(less, key=lambda each: each.candidate.cost)[: min(1, seen.left)]:
            seen.run(each.candidate)
    found = list(seen.known.values())
    holding = [each for each in found if each.holds]
    return Answer(
        sorted([*apart, *together], key=lambda each: each.candidate.cost),
        found,
        cheapest(each for each in holding if not each.candidate.aggregated),
        cheapest(each for each in holding if each.candidate.aggregated),
        spent,
    )


def cheapest(found: Iterable[Measured]) -> Measured | None:
    return min(found, key=lambda each: (each.candidate.cost, -each.goodput), default=None)


@dataclass(slots=True)
class _Runs:
    question: Question
    load: Load
    left: int
    told: Told
    known: dict[object, Measured] = field(default_factory=dict)

    def run(self, candidate: Candidate) -> Measured:
        """Once each."""
        found = self.known.get(candidate.key)
        if found is None:
            self.told(candidate, self.left)
            self.left -= 1
            found = self.known[candidate.key] = measure(self.question, self.load, candidate)
        return found

    def worth(self, candidate: Candidate) -> bool:
        """Within the GPUs, and with a replica less cheaper than what holds of its kind."""
        holding = cheapest(
            each
            for each in self.known.values()
            if each.holds and each.candidate.aggregated == candidate.aggregated
        )
        within = self.question.gpus is None or candidate.gpus <= self.question.gpus
        least = candidate.cost - max(pool.engine.cost for pool in candidate.pools)
        return within and (holding is None or least < holding.candidate.cost)


def _settle(runs: _Runs, screen: Screen, start: Candidate, keep: int) -> None:
    """From there to a smallest one that holds, while more than `keep` runs are left."""
    at = start
    while runs.left > keep and runs.worth(at):
        found = runs.run(at)
        if found.holds:
            _shrink(runs, at, keep)
            return
        at = _grown(found, screen)


def _shrink(runs: _Runs, at: Candidate, keep: int) -> None:
    """Pool by pool, the dearer step first; in smaller steps where a large one is too much."""
    steps: dict[PoolName, int] = {pool.role: _step(pool.replicas) for pool in at.pools}
    prices = {pool.role: pool.engine.cost for pool in at.pools}
    while any(steps.values()) and runs.left > keep:
        role = max(steps, key=lambda each: steps[each] * prices[each])
        smaller = at.changed(role, -steps[role])
        if smaller is not None and runs.run(smaller).holds:
            at = smaller
        else:
            steps[role] //= 2


def _grown(found: Measured, screen: Screen) -> Candidate:
    """More of what was too slow: who decodes where the ITL was missed, else who is busier."""
    roles = list(found.candidate.roles)
    if found.of_class.slow > found.of_class.late + found.found.refused:
        roles = roles[-1:]
    elif not found.candidate.aggregated:
        roles = [screen.busier(found.candidate)]
    grown = found.candidate
    for role in roles:
        more = grown.changed(role, _step(grown.replicas(role)))
        assert more is not None
        grown = more
    return grown


def _step(replicas: int) -> int:
    return max(1, round(STEP * replicas))


def _starts(apart: Sequence[Screened], together: Sequence[Screened]) -> list[Candidate]:
    """Cheapest first."""
    chosen = [*apart[:APART], *together[:TOGETHER]]
    return [each.candidate for each in sorted(chosen, key=lambda each: each.candidate.cost)]
