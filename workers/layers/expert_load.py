"""How busy a model's experts are, and moving them to where that is even."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workers.layers.experts import ExpertsFeedForward
from workers.parallel.balance import balance, settle
from workers.parallel.group import Ranks

WORTH = 0.95  # of the busiest rank's load


@dataclass(frozen=True, slots=True)
class ExpertBalance:
    """Of the time since the last one. `hottest`: of each layer, its busiest expert's load over the
    mean; `before` and `after`: the busiest rank's over the mean of ranks, over all layers, as it
    was and as it would have been with the experts where they are now; `moved` slots."""

    hottest: list[float]
    before: float
    after: float
    moved: int


class ExpertBalancer:
    """Reads how often each expert was chosen, and moves experts to where that is even. Between two
    steps, on every rank of the world; all come to the same placement."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._layers = [m for m in model.modules() if isinstance(m, ExpertsFeedForward)]
        self._ranks = ranks
        self._seen: Tensor | None = None

    @torch.inference_mode()
    def run(self) -> ExpertBalance | None:
        """None: no token came through since the last time, or there are no experts."""
        if not self._layers:
            return None
        load = self.load()
        recent = load if self._seen is None else load - self._seen
        if not int(recent.sum()):
            return None
        self._seen = load
        loads: list[list[float]] = recent.tolist()
        before, old = self._busiest(loads), [layer.placement for layer in self._layers]
        for layer, own in zip(self._layers, loads, strict=True):
            _even_out(layer, own)
        moved = sum(
            a != b
            for layer, placement in zip(self._layers, old, strict=True)
            for a, b in zip(layer.placement.slots, placement.slots, strict=True)
        )
        hottest = [max(own) * len(own) / max(sum(own), 1) for own in loads]
        return ExpertBalance(hottest, before, self._busiest(loads), moved)

    def load(self) -> Tensor:
        """[layers, experts], int64, on the host: rows through each expert since the start."""
        counts = torch.stack([layer.routed for layer in self._layers])
        spread = self._ranks.experts.size > 1
        return (self._ranks.world.all_reduce(counts) if spread else counts).cpu()

    def _busiest(self, loads: list[list[float]]) -> float:
        """Ranks wait for the busiest in every layer."""
        pairs = list(zip(self._layers, loads, strict=True))
        largest = sum(layer.placement.largest_load(own) for layer, own in pairs)
        return largest / sum(sum(own) / layer.placement.ranks for layer, own in pairs)


def _even_out(layer: ExpertsFeedForward, load: list[float]) -> None:
    placement = layer.placement
    if placement.ranks == 1:
        return
    new = balance(load, placement.ranks, len(placement.slots) - len(load))
    # What is measured differs a little every time: weights move where that gains something.
    if new.largest_load(load) < WORTH * placement.largest_load(load):
        layer.rebalance(settle(new, placement))
