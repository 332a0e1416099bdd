"""What this machine can do at all, measured beside the engine: memory reads and matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch.nn import functional as F

from workers.core.clock import Clock

READ_BYTES = 1 << 30  # far larger than any cache
REPEATS = 5


def best_seconds(run: Callable[[], object], clock: Clock, repeats: int = REPEATS) -> float:
    """The shortest of `repeats` runs after one that warms up: a limit is what is possible."""
    run()
    times = []
    for _ in range(repeats):
        began = clock.now()
        run()
        times.append(clock.now() - began)
    return min(times)


def read_bandwidth(clock: Clock) -> float:
    """Bytes a second that a sum over a large tensor reads, with torch's present threads."""
    data = torch.ones(READ_BYTES // 4)
    return READ_BYTES / best_seconds(data.sum, clock)


class MatmulRates:
    """Operations a second of x W^T for the shapes asked, each measured once; as many weights as
    exceed the caches take turns, as a model's layers do."""

    SWEEP_BYTES = 256 << 20
    MOST_WEIGHTS = 24

    def __init__(self, dtype: torch.dtype, clock: Clock) -> None:
        self._dtype = dtype
        self._clock = clock
        self.flops = cache(self._measure)

    def _measure(self, rows: int, inputs: int, outputs: int) -> float:
        size = inputs * outputs * self._dtype.itemsize
        count = min(self.MOST_WEIGHTS, max(1, self.SWEEP_BYTES // size))
        weights = [torch.randn(outputs, inputs).to(self._dtype) for _ in range(count)]
        x = torch.randn(rows, inputs).to(self._dtype)

        def sweep() -> None:
            for weight in weights:
                F.linear(x, weight)

        with torch.inference_mode():
            seconds = best_seconds(sweep, self._clock, repeats=3)
        return 2.0 * rows * inputs * outputs * count / seconds

    def seconds(self, rows: int, shapes: Iterable[tuple[int, int]]) -> float:
        """What the products of `rows` rows with weights of these shapes (outputs, inputs) take at
        their measured rates."""
        return sum(
            2.0 * rows * inputs * outputs / self.flops(rows, inputs, outputs)
            for outputs, inputs in shapes
        )
