"""What this machine can do at all, measured beside the engine: memory reads and matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from workers.core.clock import Clock
from workers.core.span import whole
from workers.kernels.pick import pick_kernels
from workers.layers.build import Build
from workers.layers.linear import Linear

READ_BYTES = 1 << 30  # far larger than any cache
REPEATS = 5
MEASURE_S = 0.05  # short runs are repeated for so long: others may use the machine
HOPELESS = 2.0  # a way that takes so many times as long as another is not the faster one


def best_seconds(run: Callable[[], object], clock: Clock, hopeless_s: float = math.inf) -> float:
    """The shortest of some runs after one that warms up: a limit is what is possible. One that
    takes `hopeless_s` is the last."""
    run()
    times: list[float] = []
    while len(times) < REPEATS or sum(times) < MEASURE_S:
        began = clock.now()
        run()
        times.append(clock.now() - began)
        if times[-1] > hopeless_s:
            break
    return min(times)


def read_bandwidth(clock: Clock) -> float:
    """Bytes a second that are read from a large tensor with torch's present threads, by the faster
    of two ways."""
    data = torch.ones(READ_BYTES // 4)
    vector = torch.ones(4096)
    ways = (data.sum, lambda: torch.mv(data.view(-1, len(vector)), vector))
    return READ_BYTES / min(best_seconds(way, clock) for way in ways)


class MatmulRates:
    """Operations a second of x W^T by the number of rows of x and the width of W's rows, each
    measured once: of the product that the engine uses, or of torch's own where that is faster.

    The weights stay in the caches: it is the arithmetic that is measured, not the memory.
    """

    MOST_WEIGHTS = 2 << 20  # elements

    def __init__(self, dtype: torch.dtype, clock: Clock) -> None:
        cpu = torch.device("cpu")
        self._build = Build(dtype, cpu, pick_kernels(cpu, dtype))
        self._clock = clock
        self.flops = cache(self._measure)

    def _measure(self, rows: int, inputs: int) -> float:
        outputs = max(self.MOST_WEIGHTS // inputs, 1)
        with torch.inference_mode():
            fastest = math.inf
            for way in self._ways(rows, inputs, outputs):
                fastest = min(fastest, best_seconds(way, self._clock, HOPELESS * fastest))
        return 2.0 * rows * inputs * outputs / fastest

    def _ways(self, rows: int, inputs: int, outputs: int) -> Iterable[Callable[[], Tensor]]:
        own = Linear(whole(inputs), [("w", whole(outputs))], self._build, bias=False)
        assert own.weight is not None
        weight = own.weight.data.normal_()
        own.pack()
        x = torch.randn(rows, inputs)
        yield partial(own, x.to(self._build.dtype))
        for dtype in (torch.float32, torch.bfloat16):
            yield partial(F.linear, x.to(dtype), weight.to(dtype))

    def seconds(self, rows: int, shapes: Iterable[tuple[int, int]]) -> float:
        """What the products of `rows` rows with weights of these shapes (outputs, inputs) take at
        their measured rates."""
        return sum(
            2.0 * rows * inputs * outputs / self.flops(rows, inputs) for outputs, inputs in shapes
        )
