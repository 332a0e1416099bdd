"""Ranks of which only the place counts: for what happens before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from workers.models.sizing import Split
from workers.parallel.group import Group, Ranks
from workers.parallel.layout import Layout


@dataclass(frozen=True)
class Place:
    rank: int
    size: int


def places(split: Split, rank: int) -> Ranks:
    """The groups of one rank, without collectives."""
    layout = Layout(split.tensor, split.experts)

    def among(members: tuple[int, ...]) -> Group:
        return Place(members.index(rank), len(members))  # type: ignore[return-value]

    world = among(tuple(range(layout.world)))
    members = (layout.tensor_members, layout.expert_members, layout.shard_members)
    return Ranks(world, *(among(of(rank)) for of in members))
