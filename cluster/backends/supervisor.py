"""Keeps child processes alive: starts them in tiers, restarts what dies, and ends all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.backends.process import Child, ChildSpec, exit_reason
from workers.core.clock import Clock, SystemClock
from workers.core.errors import ConfigError

CONFIG_FAULT = 2  # a child's exit code for "what I was given is wrong": trying again is no use


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how fast a child is started again."""

    first_s: float = 0.2
    longest_s: float = 5.0
    steady_s: float = 10.0  # who lived this long is forgiven its earlier failures
    starts: int = 3  # failures in a row that end a cluster which was never ready
    grace_s: float = 8.0  # from SIGTERM to SIGKILL

    def delay(self, failures: int) -> float:
        return min(self.longest_s, self.first_s * 2 ** max(0, failures - 1))


class Tier:
    """Children that run side by side; others may join them, and each may leave."""

    def __init__(self, supervisor: Supervisor, group: asyncio.TaskGroup) -> None:
        self._supervisor = supervisor
        self._group = group
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._graces: dict[str, float] = {}

    @property
    def names(self) -> frozenset[str]:
        """Of those that run, those that are ending too."""
        return frozenset(self._keepers)

    def add(self, spec: ChildSpec) -> None:
        keeping = self._supervisor.keep(spec, self._graces)
        self._keepers[spec.name] = self._group.create_task(keeping, name=spec.name)

    async def retire(self, name: str, grace_s: float) -> None:
        """SIGTERM, and SIGKILL when `grace_s` is over; it is not started again."""
        keeper = self._keepers[name]
        self._graces[name] = grace_s
        keeper.cancel()
        await asyncio.wait([keeper])
        del self._keepers[name], self._graces[name]

    def end(self) -> None:
        for keeper in self._keepers.values():
            keeper.cancel()


class Supervisor:
    """`say` gets one line for people. Set `ready` once the whole cluster has been up."""

    def __init__(
        self,
        log_dir: Path,
        say: Callable[[str], None],
        *,
        patience: Patience | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.log_dir = log_dir
        self.ready = False
        self.children: dict[str, Child] = {}
        self.say = say
        self._patience = patience or Patience()
        self._clock = clock or SystemClock()

    @asynccontextmanager
    async def tier(self, specs: Sequence[ChildSpec]) -> AsyncIterator[Tier]:
        """The children run while the block does; leaving it ends them, all at once.

        Raises ConfigError (in an exception group) where one of them cannot start.
        """
        async with asyncio.TaskGroup() as group:
            tier = Tier(self, group)
            for spec in specs:
                tier.add(spec)
            try:
                yield tier
            finally:
                tier.end()

    def last_line(self, name: str) -> str:
        """What the child said last, for people who wait for it."""
        child = self.children.get(name)
        words = child.last_words(lines=1) if child else ""
        return f"{name}: {words or 'starting'}"

    async def keep(self, spec: ChildSpec, graces: Mapping[str, float]) -> None:
        """Until cancelled. `graces`: of children that get longer than others to end."""
        failures = 0
        while True:
            began = self._clock.now()
            try:
                child = self.children[spec.name] = await Child.start(spec, self.log_dir)
            except OSError as error:
                if not self.ready:
                    raise ConfigError(f"{spec.name} cannot be started: {error}") from None
                failures += 1
                reason = f"cannot be started ({error})"
            else:
                code = await self._until_dead(child, spec.name, graces)
                steady = self._clock.now() - began > self._patience.steady_s
                failures = 1 if steady else failures + 1
                if not self.ready:
                    self._check_start(spec, child, code, failures)
                reason = exit_reason(code)
            delay = self._patience.delay(failures)
            self.say(f"{spec.name} {reason}; starting it again in {delay:.1f} s")
            await asyncio.sleep(delay)

    async def _until_dead(self, child: Child, name: str, graces: Mapping[str, float]) -> int:
        """Its exit code. Ends it when we are cancelled."""
        try:
            return await child.wait()
        finally:
            await child.stop(graces.get(name, self._patience.grace_s))

    def _check_start(self, spec: ChildSpec, child: Child, code: int, failures: int) -> None:
        if code == CONFIG_FAULT:
            raise ConfigError(f"{spec.name} cannot start: {child.last_words(lines=5)}")
        if failures >= self._patience.starts:
            raise ConfigError(
                f"{spec.name} {exit_reason(code)} {failures} times while the cluster was starting. "
                f"The end of its log:\n{child.last_words()}"
            )
