"""Where experts lie: slots of ranks, hot experts in several of them (as DeepSeek's EPLB, 2025)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExpertPlacement:
    """`slots[p]`: the expert in slot p of one layer; rank r has an equal share of the slots, its
    r-th. Every expert has one slot at least; tokens take turns over those of an expert."""

    slots: tuple[int, ...]
    ranks: int

    def __post_init__(self) -> None:
        assert len(self.slots) % self.ranks == 0, f"{len(self.slots)} slots, {self.ranks} ranks"
        assert set(self.slots) == set(range(max(self.slots) + 1)), "an expert without a slot"

    @property
    def per_rank(self) -> int:
        return len(self.slots) // self.ranks

    def on(self, rank: int) -> tuple[int, ...]:
        """The experts of one rank."""
        return self.slots[rank * self.per_rank : (rank + 1) * self.per_rank]

    def where(self) -> list[list[int]]:
        """For each expert its slots, ascending."""
        where: list[list[int]] = [[] for _ in range(max(self.slots) + 1)]
        for slot, expert in enumerate(self.slots):
            where[expert].append(slot)
        return where

    def largest_load(self, load: Sequence[float]) -> float:
        """Of the busiest rank, where `load` is that of each expert."""
        copies = [len(slots) for slots in self.where()]
        return max(sum(load[e] / copies[e] for e in self.on(rank)) for rank in range(self.ranks))


def in_order(count: int, ranks: int, redundant: int = 0) -> ExpertPlacement:
    """Before anything was measured: experts in order, then the first ones again."""
    return ExpertPlacement(tuple(slot % count for slot in range(count + redundant)), ranks)


def balance(load: Sequence[float], ranks: int, redundant: int) -> ExpertPlacement:
    """The placement of one layer's experts for their measured `load`, with `redundant` copies of
    the hottest. Greedy: another copy goes to the expert whose copies are busiest; then each copy,
    the busiest first, to the rank with least to do that has a free slot, and not yet this expert
    where that is possible."""
    count = len(load)
    assert redundant <= count * (ranks - 1), "more copies than ranks to hold them"
    copies = [1] * count
    for _ in range(redundant):
        spread = [e for e in range(count) if copies[e] < ranks]
        copies[max(spread, key=lambda e: load[e] / copies[e])] += 1
    share = [load[e] / copies[e] for e in range(count)]
    held: list[list[int]] = [[] for _ in range(ranks)]
    busy = [0.0] * ranks
    per_rank = (count + redundant) // ranks
    order = sorted(range(count), key=lambda e: -share[e])
    for expert in (e for e in order for _ in range(copies[e])):
        free = [rank for rank in range(ranks) if len(held[rank]) < per_rank]
        rank = min(free, key=lambda r: (expert in held[r], busy[r]))
        held[rank].append(expert)
        busy[rank] += share[expert]
    return ExpertPlacement(tuple(e for experts in held for e in experts), ranks)


def settle(new: ExpertPlacement, old: ExpertPlacement) -> ExpertPlacement:
    """`new` with ranks and their slots in an order that leaves as much as possible where `old` has
    it: ranks with most in common first; the load of the busiest stays what it is."""
    ranks = range(new.ranks)
    common = {(a, b): _common(new.on(a), old.on(b)) for a in ranks for b in ranks}
    taken: dict[int, int] = {}  # rank of old -> rank of new
    for a, b in sorted(common, key=lambda pair: -common[pair].total()):
        if b not in taken and a not in taken.values():
            taken[b] = a
    slots: list[int] = []
    for b in ranks:
        staying = common[taken[b], b]
        coming = list((Counter(new.on(taken[b])) - staying).elements())
        for expert in old.on(b):
            stays = staying[expert] > 0
            staying[expert] -= stays
            slots.append(expert if stays else coming.pop())
    return ExpertPlacement(tuple(slots), new.ranks)


def _common(some: tuple[int, ...], others: tuple[int, ...]) -> Counter[int]:
    return Counter(some) & Counter(others)


def moves(old: ExpertPlacement, new: ExpertPlacement) -> list[tuple[int, int]]:
    """(from, to) for each slot whose expert changes, by `to`: from the same rank where that has the
    expert already, else from its old slots in turn."""
    where, each = old.where(), new.per_rank
    plan: list[tuple[int, int]] = []
    for slot, expert in enumerate(new.slots):
        if old.slots[slot] == expert:
            continue
        near = [source for source in where[expert] if source // each == slot // each]
        sources = near or where[expert]
        plan.append((sources[slot % len(sources)], slot))
    return plan
