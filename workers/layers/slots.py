"""Experts in slots: looking up where a token's expert is, and moving weights when that changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.parallel.balance import ExpertPlacement, moves
from workers.parallel.group import Group


class SlotTable:
    """Stays at the same place on the device when the placement changes."""

    def __init__(self, count: int, placement: ExpertPlacement, device: torch.device) -> None:
        most = len(placement.slots) - count + 1  # slots that one expert can have
        self.placement = placement
        self._slots = torch.empty(count, most, dtype=torch.int64, device=device)
        self._copies = torch.empty(count, dtype=torch.int64, device=device)
        self.change(placement)

    def change(self, placement: ExpertPlacement) -> None:
        where = placement.where()
        count, most = self._slots.shape
        assert len(where) == count and len(placement.slots) == count + most - 1, "other slots"
        self.placement = placement
        self._slots.copy_(
            torch.tensor([slots + slots[:1] * (most - len(slots)) for slots in where])
        )
        self._copies.copy_(torch.tensor([len(slots) for slots in where]))

    def slots_of(self, ids: Tensor, first: int) -> Tensor:
        """Expert ids [T, active] of the tokens first.. of a step -> slots. Neighbouring tokens take
        turns over the copies of an expert."""
        if self._slots.shape[1] == 1:
            return self._slots.flatten()[ids]
        token = torch.arange(first, first + len(ids), device=ids.device).unsqueeze(1)
        return self._slots[ids, token % self._copies[ids]]


def exchange(
    parts: Sequence[Tensor], old: ExpertPlacement, new: ExpertPlacement, group: Group
) -> None:
    """Write rows of `parts` [this rank's slots, ...], which hold the experts of `old`, so that they
    hold those of `new`. All ranks of the group take part."""
    plan, each, rank = moves(old, new), new.per_rank, group.rank
    # In order of where they go, so by receiver; and each sender's arrive in that order.
    outgoing = [(source, slot) for source, slot in plan if source // each == rank]
    incoming = sorted((source // each, slot) for source, slot in plan if slot // each == rank)
    sent, received = [0] * group.size, [0] * group.size
    for _, slot in outgoing:
        sent[slot // each] += 1
    for sender, _ in incoming:
        received[sender] += 1
    if not plan:
        return
    for part in parts:
        rows = part[[source - rank * each for source, _ in outgoing]]
        part[[slot - rank * each for _, slot in incoming]] = group.all_to_all(rows, sent, received)
