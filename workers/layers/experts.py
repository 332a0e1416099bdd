"""Mixture of experts (Shazeer, 2017), and how ranks share it.

Over an `experts` group each rank takes its slice of the step's tokens to the ranks that have their
experts (expert parallelism; GShard, Lepikhin 2020). Without one, each rank has a part of every
expert's width, as of any other feed-forward.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.core.span import Span, share, whole
from workers.layers.build import Build
from workers.layers.dispatch import dispatch
from workers.layers.expert_stack import ExpertStack
from workers.layers.linear import Linear
from workers.layers.routing import choose
from workers.layers.slots import SlotTable, exchange
from workers.layers.weights import Target, Targets
from workers.layers.weights import whole as whole_tensor
from workers.models.architecture import ExpertNames, Experts, FusedExpertNames
from workers.parallel.balance import ExpertPlacement, in_order


class Router(nn.Module):
    """The same on every rank, in float32: rounding must not choose other experts."""

    def __init__(
        self, config: Experts, hidden: int, names: ExpertNames | FusedExpertNames, build: Build
    ) -> None:
        super().__init__()
        self._config, self._names = config, names
        parameter = partial(build.parameter, dtype=torch.float32)
        self.weight = parameter(config.count, hidden)
        self.bias = parameter(config.count) if config.router_bias else None
        self.correction = parameter(config.count) if config.correction else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[T, hidden] -> expert ids (int64) and weights (float32), [T, active] each."""
        logits = F.linear(x.float(), self.weight, self.bias)
        return choose(logits, self._config, self.correction)

    def targets(self, prefix: str) -> Targets:
        targets = [whole_tensor(f"{prefix}{self._names.router}.weight", self.weight)]
        if self.bias is not None:
            targets.append(whole_tensor(f"{prefix}{self._names.router}.bias", self.bias))
        if self.correction is not None:
            assert isinstance(self._names, ExpertNames), "no family has fused experts and this"
            targets.append(whole_tensor(prefix + self._names.correction, self.correction))
        return targets


class SharedExperts(nn.Module):
    """What every token goes through: a gated network, of which `inner` is here."""

    def __init__(self, config: Experts, hidden: int, inner: Span, build: Build) -> None:
        super().__init__()
        outputs = (("gate_proj", inner), ("up_proj", inner))
        self.gate_up = Linear(whole(hidden), outputs, build, bias=False)
        self.down = Linear(inner, (("down_proj", whole(hidden)),), build, bias=False)
        self._activation, self._kernels = config.activation, build.kernels

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden], this rank's part of it."""
        return self.down(self._kernels.gated(self.gate_up(x), self._activation))

    def targets(self, prefix: str) -> Targets:
        return self.gate_up.targets(prefix) + self.down.targets(prefix)


class ExpertsFeedForward(nn.Module):
    """Where experts are spread each has one slot at least, and `build.redundant_experts` slots hold
    copies: of which, the placement says. They need memory like any other."""

    def __init__(
        self,
        config: Experts,
        hidden: int,
        names: ExpertNames | FusedExpertNames,
        build: Build,
    ) -> None:
        super().__init__()
        self._names, self._kernels = names, build.kernels
        self._tensor = build.ranks.tensor
        self._group = group = build.ranks.experts
        self._spread = group.size > 1
        self._shard = build.ranks.shards.rank
        redundant = build.redundant_experts if self._spread else 0
        placement = in_order(config.count, group.size, redundant)
        self._table = SlotTable(config.count, placement, build.device)
        # Where experts are spread every rank has slices of tokens of its own, so nothing to sum.
        rank, size = (0, 1) if self._spread else (self._tensor.rank, self._tensor.size)
        inner = share(config.width, rank, size)
        self.router = Router(config, hidden, names, build)
        self.experts = ExpertStack(config, hidden, placement.on(group.rank), inner, build)
        self.shared = None
        if config.shared_width:
            self.shared = SharedExperts(
                config, hidden, share(config.shared_width, rank, size), build
            )
        # How many rows this rank has sent each expert, padding of graphs too; the load is their sum
        # over the world.
        self.routed = torch.zeros(config.count, dtype=torch.int64, device=build.device)

    @property
    def placement(self) -> ExpertPlacement:
        return self._table.placement

    @property
    def capturable(self) -> bool:
        """Whether the forward can be part of a CUDA graph: the host need not know the rows."""
        return not self._spread and self.experts.capturable

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden], on every rank of the shard. Where experts are spread the
        other shards have other tokens, and one that has none takes part with T = 0."""
        if not self._spread:
            return self._tensor.all_reduce(self._serve(x, 0))
        each = -(-len(x) // self._tensor.size)
        first = each * self._tensor.rank
        out = self._serve(x[first : first + each], first)
        if not len(x):
            return out
        out = F.pad(out, (0, 0, 0, each - len(out)))
        return self._tensor.all_gather(out)[: len(x)]

    def rebalance(self, placement: ExpertPlacement) -> None:
        """Between two steps, on every rank of the experts group: weights move to where `placement`
        has them. Needs memory for those of this layer that arrive here."""
        exchange(self.experts.parts(), self.placement, placement, self._group)
        self._table.change(placement)

    def targets(self, prefix: str) -> Targets:
        targets: list[Target] = self.router.targets(prefix)
        targets += self.experts.targets(prefix, self._names)
        if self.shared is not None:
            assert isinstance(self._names, ExpertNames), "no family has fused experts and these"
            targets += self.shared.targets(prefix + self._names.shared)
        return targets

    def _serve(self, x: Tensor, first: int) -> Tensor:
        """Of tokens first.. of the step; without a group, this rank's part of a sum."""
        ids, weights = self.router(x)
        self.routed.scatter_add_(0, ids.flatten(), torch.ones_like(ids).flatten())
        # Each shard begins with another copy: many have only a token or two.
        slots = self._table.slots_of(ids, first + self._shard)
        rows, places = dispatch(x, slots, len(self.placement.slots), self._group, self.experts)
        out = self._kernels.combine(rows, places, weights)
        return out if self.shared is None else out.add_(self.shared(x))
