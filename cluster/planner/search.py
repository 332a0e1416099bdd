"""Servers that are needed, as sizes of pools: within bounds and budget, cheapest in what they cost
to run and to get there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cluster.planner.needs import Servers
from cluster.planner.options import Options
from cluster.planner.signals import PoolRole, PoolSpec, PoolState, State
from workers.core.errors import ConfigError

SAID = 6  # rejected choices


class Target(NamedTuple):
    """`as_prefill`: of a flex pool's replicas."""

    replicas: int
    as_prefill: int = 0


class Actions(NamedTuple):
    start: int = 0
    stop: int = 0
    flip: int = 0

    def plus(self, other: Actions) -> Actions:
        return Actions(*(a + b for a, b in zip(self, other, strict=True)))

    def __str__(self) -> str:
        words = [f"{verb} {count}" for verb, count in self._asdict().items() if count]
        return ", ".join(words) or "nothing"


@dataclass(frozen=True, slots=True)
class Choice:
    """`short`: part of the servers of one role that is missing, the larger of the two; `price`: in
    seconds of a replica."""

    targets: Mapping[str, Target]
    servers: Servers
    short: float
    price: float
    actions: Actions

    def __str__(self) -> str:
        sizes = (
            f"{name} {target.replicas}"
            + (f" ({target.as_prefill} of them prefill)" if target.as_prefill else "")
            for name, target in self.targets.items()
        )
        return ", ".join(sizes)


class Pools:
    """One pool of each kind at most. Raises ConfigError for more, for a role that nobody serves,
    for bounds that contradict each other, and for a budget below the lower ones."""

    def __init__(self, specs: Sequence[PoolSpec], options: Options) -> None:
        self.options = options
        self.by_role: dict[PoolRole, PoolSpec] = {}
        for spec in specs:
            if spec.role in self.by_role:
                raise ConfigError(f"two {spec.role} pools; the planner sizes one of each kind")
            if spec.least > spec.most:
                raise ConfigError(
                    f"pool {spec.name}: at least {spec.least} and at most {spec.most} replicas"
                )
            self.by_role[spec.role] = spec
        for role in ("prefill", "decode"):
            if not any(spec.serves(role) and spec.most for spec in specs):
                raise ConfigError(f"no pool may {role}")
        least = sum(spec.least * spec.resources for spec in specs)
        if options.budget is not None and least > options.budget:
            raise ConfigError(
                f"the lower bounds of the pools take {least:g}, the budget is {options.budget:g}"
            )

    def __iter__(self) -> Iterator[PoolSpec]:
        return iter(self.by_role.values())

    def have(self, state: State) -> Servers:
        """Those that are coming count."""
        prefill, decode, flex = (self._state(role, state) for role in ("prefill", "decode", "flex"))
        return Servers(
            prefill.coming + flex.as_prefill, decode.coming + flex.coming - flex.as_prefill
        )

    @property
    def most(self) -> Servers:
        prefill, decode, flex = (self._most(role) for role in ("prefill", "decode", "flex"))
        return Servers(prefill + flex, decode + flex)

    @property
    def least(self) -> Servers:
        """Of the dedicated pools."""
        return Servers(self._least("prefill"), self._least("decode"))

    def price(self, role: PoolRole) -> float:
        """Of a server of that role, at the pool it would come from first."""
        spec = self.by_role.get(role) or self.by_role["flex"]
        return spec.resources

    def fits(self, servers: Servers) -> bool:
        """Within all bounds and the budget, some way."""
        budget = self.options.budget
        return any(
            not found.short and (budget is None or self._resources(found) <= budget)
            for count, as_prefill in self._flexes()
            for found in [self._choice(servers, count, as_prefill, {})]
        )

    def assign(self, servers: Servers, state: State) -> tuple[Choice, list[Choice]]:
        """The best, and the next best of those that were rejected."""
        ranked = sorted(
            self._choices(servers, state),
            key=lambda choice: (choice.short, choice.price, choice.actions),
        )
        return ranked[0], ranked[1 : SAID + 1]

    def _flexes(self) -> Iterator[tuple[int, int]]:
        """Flex replicas, and those of them that prefill."""
        flex = self.by_role.get("flex")
        for count in range(flex.least, flex.most + 1) if flex else (0,):
            for as_prefill in range(count + 1):
                yield count, as_prefill

    def _choices(self, servers: Servers, state: State) -> Iterator[Choice]:
        budget = self.options.budget
        for count, as_prefill in self._flexes():
            found = self._choice(servers, count, as_prefill, state)
            if budget is None or self._resources(found) <= budget:
                yield found
            else:
                yield from self._squeezed(servers, count, as_prefill, state, budget)

    def _squeezed(
        self, servers: Servers, count: int, as_prefill: int, state: State, budget: float
    ) -> Iterator[Choice]:
        """With fewer servers of either role, so that the budget holds."""
        for prefill in range(servers.prefill, -1, -1):
            low, high = 0, servers.decode
            while low < high:
                middle = (low + high + 1) // 2
                tried = self._choice(Servers(prefill, middle), count, as_prefill, state)
                low, high = (
                    (middle, high) if self._resources(tried) <= budget else (low, middle - 1)
                )
            found = self._choice(Servers(prefill, low), count, as_prefill, state, asked=servers)
            if self._resources(found) <= budget:
                yield found

    def _choice(
        self,
        servers: Servers,
        count: int,
        as_prefill: int,
        state: State,
        asked: Servers | None = None,
    ) -> Choice:
        asked = asked or servers
        targets: dict[str, Target] = {}
        got = {"prefill": as_prefill, "decode": count - as_prefill}
        for role, wanted in zip(("prefill", "decode"), servers, strict=True):
            spec = self.by_role.get(role)  # type: ignore[call-overload]
            if spec is not None:
                size = max(spec.least, min(spec.most, wanted - got[role]))
                targets[spec.name] = Target(size)
                got[role] += size
        flex = self.by_role.get("flex")
        if flex is not None:
            targets[flex.name] = Target(count, as_prefill)
        made = Servers(got["prefill"], got["decode"])
        short = max((max(0, a - m) / a for a, m in zip(asked, made, strict=True) if a), default=0.0)
        actions = Actions()
        price = 0.0
        costs, keep_s = self.options.costs, self.options.keep_s
        for spec in self:
            target = targets[spec.name]
            todo = actions_to(target, state.get(spec.name, PoolState()))
            actions = actions.plus(todo)
            price += spec.resources * (
                target.replicas * keep_s
                + todo.start * costs.start
                + todo.stop * costs.stop
                + todo.flip * costs.flip
            )
        return Choice(targets, made, short, price, actions)

    def _resources(self, choice: Choice) -> float:
        return sum(spec.resources * choice.targets[spec.name].replicas for spec in self)

    def _state(self, role: PoolRole, state: State) -> PoolState:
        spec = self.by_role.get(role)
        return state.get(spec.name, PoolState()) if spec else PoolState()

    def _most(self, role: PoolRole) -> int:
        spec = self.by_role.get(role)
        return spec.most if spec else 0

    def _least(self, role: PoolRole) -> int:
        spec = self.by_role.get(role)
        return spec.least if spec else 0


def actions_to(target: Target, now: PoolState) -> Actions:
    """A replica that starts takes the role that is wanted; whoever stops has one that is not."""
    start = max(0, target.replicas - now.coming)
    stop = max(0, now.coming - target.replicas)
    decode, decode_now = target.replicas - target.as_prefill, now.coming - now.as_prefill
    flip = max(0, target.as_prefill - now.as_prefill - start, decode - decode_now - start)
    return (
        Actions(start, stop, flip) if target.as_prefill or now.as_prefill else Actions(start, stop)
    )
