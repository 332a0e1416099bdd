"""What the collectives of one rank take and move, measured at the seam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from workers.core.clock import Clock, SystemClock
from workers.models.architecture import ModelConfig
from workers.parallel.group import Group, Ranks

T = TypeVar("T")


class Traffic:
    """Of a rank on a CPU: on a GPU collectives are only queued when they return. Seconds hold the
    wait for the other ranks; bytes are those that this rank brings."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.seconds = 0.0
        self.bytes = 0
        self._clock = clock or SystemClock()

    def of(self, ranks: Ranks) -> Ranks:
        """The same ranks, measured."""
        return Ranks(*(TimedGroup(group, self) for group in self._groups(ranks)))

    def measure(self, x: Tensor, collective: Callable[[], T]) -> T:
        began = self._clock.now()
        result = collective()
        self.seconds += self._clock.now() - began
        self.bytes += x.nbytes
        return result

    @staticmethod
    def _groups(ranks: Ranks) -> tuple[Group, ...]:
        return ranks.world, ranks.tensor, ranks.experts, ranks.shards


class TimedGroup:
    """Any Group, each of its collectives measured; one of one rank has nothing to measure."""

    def __init__(self, group: Group, traffic: Traffic) -> None:
        self.rank = group.rank
        self.size = group.size
        self._group = group
        self._traffic = traffic

    def all_reduce(self, x: Tensor) -> Tensor:
        return self._measured(x, lambda: self._group.all_reduce(x))

    def all_gather(self, x: Tensor) -> Tensor:
        return self._measured(x, lambda: self._group.all_gather(x))

    def gather(self, x: Tensor) -> Tensor | None:
        return self._measured(x, lambda: self._group.gather(x))

    def broadcast(self, x: Tensor) -> Tensor:
        return self._measured(x, lambda: self._group.broadcast(x))

    def all_to_all(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        return self._measured(x, lambda: self._group.all_to_all(x, sent, received))

    def _measured(self, x: Tensor, collective: Callable[[], T]) -> T:
        return collective() if self.size == 1 else self._traffic.measure(x, collective)


def dense_bytes(config: ModelConfig, tensor: int, tokens: int, itemsize: int) -> int:
    """That a rank of `tensor` brings to a step of so many tokens, all of which sample, without
    experts: sums after the embedding and after both halves of each layer, and its logits."""
    sums = (2 * len(config.layers) + 1) * config.hidden_size
    logits = -(-config.vocab_size // tensor)
    return (sums + logits) * tokens * itemsize
