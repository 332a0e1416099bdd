"""Rows of tokens to the slots of their experts and back, on one rank or over a group."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workers.parallel.group import Group

# x [n, W] sorted by this rank's slots, ends [slots] (int32): where each slot's rows end -> [n, W]
Serve = Callable[[Tensor, Tensor], Tensor]


def dispatch(
    x: Tensor, slots: Tensor, count: int, group: Group, serve: Serve
) -> tuple[Tensor, Tensor]:
    """x [T, W] through slots [T, active] (int64) of the `count` that ranks of the group have equal
    shares of -> rows [T * active, W] and places [T, active]: the row of each token and slot.

    In a group of one the host learns nothing of the rows, so nothing waits for a GPU.
    """
    ordered, order = slots.flatten().sort(stable=True)
    rows = x[order // slots.shape[1]]
    ends = ends_of(ordered, count)
    served = serve(rows, ends) if group.size == 1 else _exchange(rows, ends, group, serve)
    return served, _inverse(order).view_as(slots)


def _exchange(rows: Tensor, ends: Tensor, group: Group, serve: Serve) -> Tensor:
    """rows sorted by slot, so by the rank that has it, too."""
    counts = ends.diff(prepend=ends.new_zeros(1)).view(group.size, -1)  # [ranks, slots of each]
    once = (1,) * group.size
    incoming = group.all_to_all(counts, once, once)
    sent, received = torch.stack((counts.sum(1), incoming.sum(1))).tolist()
    arrived = group.all_to_all(rows, sent, received)
    # They lie by sender and by slot: each sender's rows for a slot in one run.
    slot = torch.arange(counts.shape[1], device=rows.device).repeat(group.size)
    slot = slot.repeat_interleave(incoming.flatten(), output_size=len(arrived))
    ordered, order = slot.sort(stable=True)
    served = serve(arrived[order], ends_of(ordered, counts.shape[1]))
    return group.all_to_all(served[_inverse(order)], received, sent)


def ends_of(ordered: Tensor, count: int) -> Tensor:
    """ordered [n] ascending numbers below `count` -> where each number's run ends (int32)."""
    every = torch.arange(count, dtype=ordered.dtype, device=ordered.device)
    return torch.searchsorted(ordered, every, right=True, out_int32=True)


def _inverse(order: Tensor) -> Tensor:
    """order [n], a permutation -> where each has gone."""
    places = torch.empty_like(order)
    return places.scatter_(0, order, torch.arange(len(order), device=order.device))
