"""Which ranks of a replica form which group."""

from __future__ import annotations

from dataclasses import dataclass

from workers.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Layout:
    """`tensor` neighbours split heads and widths, `experts` ranks at equal distances split the
    experts; the larger of the two is the world, and a multiple of both. With 2 and 4:

        tensor   0 1 | 2 3        experts   0 1 2 3

    and with 4 and 2: one tensor group of all, experts 0 2 | 1 3. Raises ConfigError."""

    tensor: int
    experts: int

    def __post_init__(self) -> None:
        small, large = sorted((self.tensor, self.experts))
        if large % small:
            raise ConfigError(
                f"tensor_parallel {self.tensor} and expert_parallel {self.experts}: the larger "
                "must be a multiple of the smaller"
            )

    @property
    def world(self) -> int:
        return max(self.tensor, self.experts)

    def tensor_members(self, rank: int) -> tuple[int, ...]:
        first = rank // self.tensor * self.tensor
        return tuple(range(first, first + self.tensor))

    def shard_members(self, rank: int) -> tuple[int, ...]:
        """One rank of each tensor group, at the same place in it."""
        return tuple(range(rank % self.tensor, self.world, self.tensor))

    @property
    def shards(self) -> int:
        return self.world // self.tensor

    def expert_members(self, rank: int) -> tuple[int, ...]:
        step = self.world // self.experts
        return tuple(range(rank % step, self.world, step))
