"""The experts that a rank holds: gated networks of one shape, multiplied as one."""

from __future__ import annotations

from torch import Tensor, nn

from workers.core.span import Span
from workers.kernels.api import GroupedProduct
from workers.layers.build import Build
from workers.layers.weights import Target, Targets, nothing_of
from workers.models.architecture import ExpertNames, Experts, FusedExpertNames


class ExpertStack(nn.Module):
    """`held[s]`: the expert whose weights slot s is loaded with; `inner`: the part of each expert's
    width that is here. With a part, results are a part of a sum, and the bias is in the first."""

    def __init__(
        self, config: Experts, hidden: int, held: tuple[int, ...], inner: Span, build: Build
    ) -> None:
        super().__init__()
        self._config, self._hidden, self._held, self._inner = config, hidden, held, inner
        slots, width = len(held), inner.size
        self.gate_up: Tensor | None = build.parameter(slots, 2 * width, hidden)
        self.down: Tensor | None = build.parameter(slots, hidden, width)
        adds_bias = config.bias and inner.first == 0
        self.gate_up_bias = build.parameter(slots, 2 * width) if config.bias else None
        self.down_bias = build.parameter(slots, hidden) if adds_bias else None
        self._kernels = build.kernels
        self._products: tuple[GroupedProduct, GroupedProduct] | None = None

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """x [n, hidden] sorted by slot, of which those of slot s end at ends[s] (int32)
        -> [n, hidden]."""
        assert self._products is not None, "pack first"
        gate_up, down = self._products
        return down(self._kernels.gated(gate_up(x, ends), self._config.activation), ends)

    def pack(self) -> None:
        """Lay loaded weights out as they are read fastest, and let go of the plain ones."""
        assert self.gate_up is not None and self.down is not None, "packed twice"
        gate_up = self._kernels.pack_experts(self.gate_up.data, self.gate_up_bias)
        self.gate_up = None
        self._products = gate_up, self._kernels.pack_experts(self.down.data, self.down_bias)
        self.down = None

    @property
    def capturable(self) -> bool:
        assert self._products is not None, "pack first"
        return all(product.capturable for product in self._products)

    def parts(self) -> tuple[Tensor, ...]:
        """[slots, ...] each: row s is all that is slot s's, in whatever layout."""
        assert self._products is not None, "pack first"
        return tuple(part for product in self._products for part in product.parts)

    def targets(self, prefix: str, names: ExpertNames | FusedExpertNames) -> Targets:
        if isinstance(names, FusedExpertNames):
            return self._fused_targets(prefix, names)
        assert not self._config.bias, "no family has biases expert by expert"
        assert self.gate_up is not None and self.down is not None, "packed already"
        inner, width = self._inner, self._inner.size
        into, out_of = (inner.total, self._hidden), (self._hidden, inner.total)
        targets: Targets = []
        for slot, expert in enumerate(self._held):
            gate, up, down = _names(prefix, names, expert)
            rows = self.gate_up.data[slot]
            targets += [
                Target(gate, rows[:width], into, (inner.part,)),
                Target(up, rows[width:], into, (inner.part,)),
                Target(down, self.down.data[slot], out_of, (slice(None), inner.part)),
            ]
        for expert in set(range(self._config.count)) - set(self._held):
            gate, up, down = _names(prefix, names, expert)
            targets += [nothing_of(gate, into), nothing_of(up, into), nothing_of(down, out_of)]
        return targets

    def _fused_targets(self, prefix: str, names: FusedExpertNames) -> Targets:
        assert self.gate_up is not None and self.down is not None, "packed already"
        count, inner, width = self._config.count, self._inner, self._inner.size
        gate = slice(2 * inner.first, 2 * inner.end, 2)
        up = slice(2 * inner.first + 1, 2 * inner.end, 2)
        into, out_of = (count, self._hidden, 2 * inner.total), (count, inner.total, self._hidden)
        gate_up, down = prefix + names.gate_up, prefix + names.down
        bias, down_bias = f"{gate_up}_bias", f"{down}_bias"
        targets: Targets = []
        for slot, expert in enumerate(self._held):
            here, there = slice(slot, slot + 1), slice(expert, expert + 1)
            for half, part in ((slice(width), gate), (slice(width, None), up)):
                view = self.gate_up.data[here, half]
                targets.append(Target(gate_up, view, into, (there, slice(None), part), True))
                if self.gate_up_bias is not None:
                    view = self.gate_up_bias.data[here, half]
                    targets.append(Target(bias, view, (into[0], into[2]), (there, part)))
            targets.append(Target(down, self.down.data[here], out_of, (there, inner.part), True))
            if self.down_bias is not None:
                view = self.down_bias.data[here]
                targets.append(Target(down_bias, view, (count, self._hidden), (there,)))
        if self._config.bias and self.down_bias is None:
            targets.append(nothing_of(down_bias, (count, self._hidden)))
        return targets


def _names(prefix: str, names: ExpertNames, expert: int) -> tuple[str, str, str]:
    """Of an expert's gate, up and down."""
    parts = (names.gate, names.up, names.down)
    gate, up, down = (f"{prefix}{part.format(e=expert)}.weight" for part in parts)
    return gate, up, down
