"""What would have been best, known only afterwards: the best fixed size, the best sizes over time,
and what no sizes could have exceeded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from cluster.simulator.scaling.load import Arrival
from cluster.simulator.scaling.policy import Fixed, Seen, Sizes
from cluster.simulator.scaling.run import HOUR_S, Outcome, run
from cluster.simulator.scaling.sizes import Site

TRIED = 3  # prefill servers beyond the fewest that do
PARTS = (0.84, 0.88, 0.92, 0.96, 1.0, 1.04)  # of the load that sizes over time are made for


def best_fixed(
    site: Site,
    arrivals: Callable[[], Iterator[Arrival]],
    window_s: float,
    warm_up_s: float,
    around: Sizes,
    goal: float,
) -> Outcome:
    """Most good requests a replica-hour among sizes that reach `goal`; where none does, among all
    that were tried. `around`: where to begin to look."""
    known: dict[Sizes, Outcome] = {}

    def of(prefill: int, decode: int) -> Outcome:
        sizes = Sizes(prefill, decode)
        if sizes not in known:
            known[sizes] = run(site, Fixed(sizes), arrivals(), window_s, sizes, warm_up_s=warm_up_s)
        return known[sizes]

    plenty = 3 * around.decode + 4
    few = _least(lambda n: of(n, plenty).attainment >= goal, around.prefill)
    for prefill in range(few, few + TRIED):
        _least(lambda n, p=prefill: of(p, n).attainment >= goal, around.decode)  # type: ignore[misc]
    enough = [outcome for outcome in known.values() if outcome.attainment >= goal]
    return max(enough or known.values(), key=lambda outcome: outcome.goodput)


class Foreseen:
    """Follows what will be needed, known beforehand: each replica is ordered a cold start before it
    is needed, and leaves when it is not, unless it would be back before that pays.

    `needed`: (time, sizes from then on), in order."""

    def __init__(self, needed: Sequence[tuple[float, Sizes]], cold_s: float, away_s: float) -> None:
        self._there: list[list[tuple[float, float]]] = []  # by role: from when to when each is
        for place in range(2):
            sizes = [(at, each[place]) for at, each in needed]
            self._there.append(
                [
                    span
                    for level in range(1, max(size for _, size in sizes) + 1)
                    for span in _spans(sizes, level, cold_s, away_s)
                ]
            )

    def at(self, now: float) -> Sizes:
        return Sizes(*(sum(a <= now < b for a, b in spans) for spans in self._there))

    def sizes(self, seen: Seen) -> Sizes:
        return self.at(seen.now)


def _spans(
    sizes: Sequence[tuple[float, int]], level: int, cold_s: float, away_s: float
) -> list[tuple[float, float]]:
    """When the replica of that level is paid for, the cold start included; to be away for less than
    `away_s` beyond that does not pay."""
    spans: list[list[float]] = []
    for (at, size), (until, _) in pairwise([*sizes, (math.inf, 0)]):
        if size < level:
            continue
        if spans and at - cold_s - spans[-1][1] <= away_s:
            spans[-1][1] = until
        else:
            spans.append([at - cold_s, until])
    return [(begin, end) for begin, end in spans]


def most(site: Site, arrivals: Iterator[Arrival]) -> float:
    """Good requests a replica-hour if every prefill server always computed and every place of every
    batch were always taken: more is not possible."""
    shapes = [arrival.shape for arrival in arrivals]
    prefill, decode = site.pools["prefill"].model, site.pools["decode"].model
    work_s = sum(
        site.latency.prefill_s(prefill, each.uncached, each.prompt - each.uncached)
        for each in shapes
    )
    tokens = sum(each.output for each in shapes)
    held = sum(each.output * (each.prompt + each.output / 2) for each in shapes) / tokens
    batch = site.batch(round(held))
    step_s = site.latency.decode_s(decode, batch, round(batch * held))
    return len(shapes) / (work_s + tokens * step_s / batch) * HOUR_S


def _least(enough: Callable[[int], bool], guess: int) -> int:
    """By steps from `guess`, down or up; at most 4 times as many are tried."""
    size = guess
    if enough(size):
        while size > 1 and enough(size - 1):
            size -= 1
        return size
    while size < 4 * guess and not enough(size):
        size += 1
    return size
