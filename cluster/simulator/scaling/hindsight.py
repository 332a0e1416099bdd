"""The fixed size that would have been best, known only afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cluster.simulator.scaling.load import Arrival
from cluster.simulator.scaling.policy import Fixed, Sizes
from cluster.simulator.scaling.run import Outcome, run
from cluster.simulator.scaling.sizes import Site

TRIED = 3  # prefill servers beyond the fewest that do


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
