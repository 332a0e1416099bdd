"""A plan that might be: replicas of some kinds in pools of some roles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from cluster.config import PoolConfig
from cluster.sizing.engines import Engine

PoolName = Literal["prefill", "decode", "aggregated"]


class Sized(NamedTuple):
    role: PoolName
    engine: Engine
    replicas: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """`pools`: one prefill and one decode, or one aggregated."""

    pools: tuple[Sized, ...]

    @property
    def aggregated(self) -> bool:
        return len(self.pools) == 1

    @property
    def gpus(self) -> int:
        return sum(pool.engine.gpus * pool.replicas for pool in self.pools)

    @property
    def cost(self) -> float:
        return sum(pool.engine.cost * pool.replicas for pool in self.pools)

    @property
    def key(self) -> tuple[tuple[str, str, int], ...]:
        return tuple((pool.role, pool.engine.name, pool.replicas) for pool in self.pools)

    @property
    def roles(self) -> Iterator[PoolName]:
        return (pool.role for pool in self.pools)

    def replicas(self, role: PoolName) -> int:
        return next(pool.replicas for pool in self.pools if pool.role == role)

    def changed(self, role: PoolName, by: int) -> Candidate | None:
        """With more or fewer replicas of one role; None where none would be left."""
        pools = tuple(
            pool._replace(replicas=pool.replicas + by) if pool.role == role else pool
            for pool in self.pools
        )
        return Candidate(pools) if all(pool.replicas > 0 for pool in pools) else None

    def configs(self) -> list[PoolConfig]:
        return [pool.engine.pool(pool.role, pool.replicas) for pool in self.pools]

    def as_json(self) -> dict[str, Any]:
        pools = [pool.model_dump(exclude_unset=True) for pool in self.configs()]
        return {"pools": pools, "gpus": self.gpus, "cost": self.cost}

    def __str__(self) -> str:
        if self.aggregated:
            only = self.pools[0]
            return f"{only.replicas} aggregated {only.engine.name}"
        return " : ".join(
            f"{pool.replicas}{pool.role[0].upper()} {pool.engine.name}" for pool in self.pools
        )
