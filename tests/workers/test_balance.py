from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.parallel.balance import ExpertPlacement, balance, in_order, moves, settle


@st.composite
def loads(draw: st.DrawFn) -> tuple[list[float], int, int]:
    """load of each expert, ranks, redundant slots"""
    ranks, per_rank = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    count = draw(st.integers(per_rank, ranks * per_rank))  # no expert twice on a rank
    load = draw(st.lists(st.integers(0, 1000), min_size=count, max_size=count))
    return load, ranks, ranks * per_rank - count


@st.composite
def placements(draw: st.DrawFn, like: ExpertPlacement) -> ExpertPlacement:
    """Any other with as many slots, experts and ranks."""
    count = max(like.slots) + 1
    redundant = len(like.slots) - count
    more = st.lists(st.integers(0, count - 1), min_size=redundant, max_size=redundant)
    slots = draw(st.permutations([*range(count), *draw(more)]))
    return ExpertPlacement(tuple(slots), like.ranks)


@given(loads())
def test_balance_gives_every_rank_its_slots_and_the_busiest_little_above_the_mean(
    case: tuple[list[float], int, int],
) -> None:
    load, ranks, redundant = case
    placement = balance(load, ranks, redundant)
    assert placement.ranks == ranks and len(placement.slots) == len(load) + redundant
    assert set(placement.slots) == set(range(len(load)))
    copies = Counter(placement.slots)
    assert max(copies.values()) <= ranks
    largest_copy = max(own / copies[expert] for expert, own in enumerate(load))
    assert placement.largest_load(load) <= sum(load) / ranks + largest_copy + 1e-6


@given(loads())
def test_copies_go_to_the_hottest(case: tuple[list[float], int, int]) -> None:
    load, ranks, redundant = case
    copies = Counter(balance(load, ranks, redundant).slots)
    for hot in range(len(load)):
        for cold in range(len(load)):
            if copies[cold] > 1 and copies[hot] < ranks:
                assert load[hot] / copies[hot] <= load[cold] / (copies[cold] - 1)


def test_one_hot_expert_is_shared_by_all_ranks() -> None:
    load = [90.0, 1, 1, 1, 1, 1, 1, 1, 1]
    placement = balance(load, 3, 3)
    assert Counter(placement.slots)[0] == 3 and all(0 in placement.on(rank) for rank in range(3))
    assert placement.largest_load(load) < 35 < in_order(9, 3, 3).largest_load(load)


@given(loads(), st.data())
def test_settling_moves_no_more_and_loads_no_rank_more(
    case: tuple[list[float], int, int], data: st.DataObject
) -> None:
    load, ranks, redundant = case
    new = balance(load, ranks, redundant)
    old = data.draw(placements(new))
    settled = settle(new, old)
    members = [sorted(map(sorted, map(p.on, range(ranks)))) for p in (new, settled)]
    assert members[0] == members[1]
    assert settle(new, new) == new and settle(old, old) == old
    for rank in range(ranks):  # what stays on a rank stays in its slot
        kept = Counter(settled.on(rank)) & Counter(old.on(rank))
        pairs = zip(settled.on(rank), old.on(rank), strict=True)
        in_place = sum(now == before for now, before in pairs)
        assert in_place == kept.total()


@given(loads(), st.data())
def test_moves_turn_one_placement_into_another(
    case: tuple[list[float], int, int], data: st.DataObject
) -> None:
    load, ranks, redundant = case
    new = balance(load, ranks, redundant)
    old = data.draw(placements(new))
    slots = list(old.slots)
    for source, slot in moves(old, new):
        slots[slot] = old.slots[source]
    assert tuple(slots) == new.slots
    for source, slot in moves(old, new):  # nothing travels that its rank has
        near = old.on(slot // new.per_rank)
        assert new.slots[slot] not in near or source // new.per_rank == slot // new.per_rank
    assert moves(new, new) == []


def test_a_placement_must_have_every_expert_and_equal_shares() -> None:
    for slots, ranks in (((0, 2), 1), ((0, 1, 2), 2)):
        with pytest.raises(AssertionError):
            ExpertPlacement(slots, ranks)
