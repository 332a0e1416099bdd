"""Policies that hash: the same prefix, or the same conversation, goes to the same replica."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal

from router.placement.decision import Candidates, Need

POINTS = 100  # of each replica on the ring
PREFIX_TOKENS = 1024


class ConsistentHash:
    """Each replica has points on a ring and takes what falls before them. `bound`: one that has
    more requests than so many times the mean hands on to the next (None = never). What has no name
    goes to the least loaded."""

    def __init__(self, by: Literal["prefix", "session"], bound: float | None = None) -> None:
        self._by = by
        self._bound = bound
        self._names: list[str] = []
        self._ring: list[tuple[int, int]] = []  # (point, place among the names)

    def choose(self, need: Need, among: Candidates) -> int:
        names = [replica.id for replica in among.replicas]
        if names != self._names:
            self._names, self._ring = names, _ring(names)
        loads = [replica.num_seqs for replica in among.replicas]
        size = among.replicas[0].record.block_size
        key = _prefix(need, size) if self._by == "prefix" else need.session
        if key is None:
            return loads.index(min(loads))
        start = bisect(self._ring, (_point(key), 0)) % len(self._ring)
        if self._bound is None:
            return self._ring[start][1]
        most = max(1.0, self._bound * (sum(loads) + 1) / len(loads))
        around = self._ring[start:] + self._ring[:start]
        fitting = (place for _, place in around if loads[place] + 1 <= most)
        return next(fitting, around[0][1])


def _prefix(need: Need, block_size: int) -> bytes | None:
    """The id of the block where the first PREFIX_TOKENS end; None where no block is full."""
    if not need.ids:
        return None
    return need.ids[min(len(need.ids), max(1, PREFIX_TOKENS // block_size)) - 1]


def _ring(names: Sequence[str]) -> list[tuple[int, int]]:
    return sorted(
        (_point(f"{name} {copy}".encode()), place)
        for place, name in enumerate(names)
        for copy in range(POINTS)
    )


def _point(key: bytes) -> int:
    return int.from_bytes(blake2b(key, digest_size=8).digest())
