"""Whether a Ray cluster can hold what the config asks for; asked before anybody waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.config import ClusterConfig, PoolConfig
from cluster.config_planner import rank_cpus, rank_gpus
from workers.core.errors import ConfigError

ROUTER_CPUS = 1.0
Resources = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Ask:
    """`count` ranks of `who`, each with so much; `ranks` of them are a replica."""

    who: str
    count: int
    cpus: float
    gpus: float
    ranks: int = 1

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.who}: {self.count} x {self.cpus:g} CPU{gpus}"


def at_once(pool: PoolConfig) -> int:
    return pool.replicas


def at_most(pool: PoolConfig) -> int:
    return pool.most


def asks(config: ClusterConfig, size: Callable[[PoolConfig], int] = at_once) -> list[Ask]:
    """Of the router and of so many replicas of each pool."""
    ranks = [
        Ask(
            pool.name,
            size(pool) * config.layout(pool).world,
            rank_cpus(config, pool),
            rank_gpus(config, pool),
            config.layout(pool).world,
        )
        for pool in config.pools
        if size(pool)
    ]
    return [Ask("router", 1, ROUTER_CPUS, 0.0), *ranks]


def unplaced(wanted: Iterable[Ask], nodes: Iterable[Resources]) -> dict[str, int]:
    """Ranks that find no node, by who asks; the largest are placed first."""
    left = [dict(node) for node in nodes]
    missing: dict[str, int] = {}
    for ask in sorted(wanted, key=lambda ask: (ask.gpus, ask.cpus), reverse=True):
        for _ in range(ask.count):
            needs = {"CPU": ask.cpus, "GPU": ask.gpus}
            node = next((n for n in left if _holds(n, needs)), None)
            if node is None:
                missing[ask.who] = missing.get(ask.who, 0) + 1
            else:
                for name, amount in needs.items():
                    node[name] = node.get(name, 0.0) - amount
    return missing


def check_resources(wanted: Sequence[Ask], nodes: Sequence[Resources]) -> None:
    """Raises ConfigError that says what is asked, what there is, and what would fit."""
    missing = unplaced(wanted, nodes)
    if not missing:
        return
    raise ConfigError(
        f"the Ray cluster is too small: asked are {'; '.join(map(str, wanted))}; it has "
        f"{_total(nodes, 'CPU'):g} CPU and {_total(nodes, 'GPU'):g} GPU on {len(nodes)} nodes "
        f"(ranks that fit: {_fits(wanted, missing)}). Set `replicas`, `num_cpus` or `num_gpus` of "
        "the pools, or add nodes"
    )


def growth(config: ClusterConfig, nodes: Sequence[Resources]) -> str:
    """For people: how far pools can grow, where that is less than they may; else empty. It is no
    error: nodes may come."""
    wanted = asks(config, at_most)
    missing = unplaced(wanted, nodes)
    if not missing:
        return ""
    return (
        f"no room for all that pools may grow to (ranks that fit: {_fits(wanted, missing)}); what "
        "is ordered beyond that waits for nodes"
    )


def _fits(wanted: Iterable[Ask], missing: Mapping[str, int]) -> str:
    return ", ".join(
        f"{ask.who} {ask.count - missing[ask.who]} of {ask.count}"
        for ask in wanted
        if ask.who in missing
    )


def _holds(node: Resources, needs: Resources) -> bool:
    return all(node.get(name, 0.0) >= amount for name, amount in needs.items())


def _total(nodes: Iterable[Resources], name: str) -> float:
    return sum(node.get(name, 0.0) for node in nodes)
