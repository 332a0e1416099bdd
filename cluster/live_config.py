"""Follows the config file of a running cluster: its `slo` section holds at once, the rest at the
next start."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from cluster.config import ClusterConfig
from router.flow.classes import SloConfig
from workers.core.errors import ConfigError, KvasirError

LOOK_EVERY_S = 1.0
Stamp = tuple[int, int, int] | None


class LiveConfig:
    """`read()` gives the file's config or raises ConfigError, `set_slo` tells the router, `say` is
    for people. `running`: the config that the cluster was started with."""

    def __init__(
        self,
        path: Path,
        running: ClusterConfig,
        read: Callable[[], ClusterConfig],
        set_slo: Callable[[SloConfig], Awaitable[None]],
        say: Callable[[str], None],
    ) -> None:
        self._path = path
        self._running = running
        self._read = read
        self._set_slo = set_slo
        self._say = say
        self._told = running.slo
        self._wanted = running.slo
        self._seen = _stamp(path)

    async def follow(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        stamp = _stamp(self._path)
        if stamp != self._seen:
            self._seen = stamp
            self._take()
        if self._wanted != self._told:
            await self._tell()

    def _take(self) -> None:
        try:
            new = self._read()
        except ConfigError as error:
            self._say(f"{error.message}\n{self._path} is ignored until it is right")
            return
        self._wanted = new.slo
        later = [
            key
            for key in ClusterConfig.model_fields
            if key != "slo" and getattr(new, key) != getattr(self._running, key)
        ]
        if later:
            self._say(f"{self._path}: {', '.join(later)} changed: that needs a restart")

    async def _tell(self) -> None:
        """Once more after a second where the router does not answer."""
        wanted = self._wanted
        try:
            await self._set_slo(wanted)
        except KvasirError as error:
            self._say(f"slo is not changed yet: {error.message}")
            return
        self._told = wanted
        self._say("slo is changed")


def _stamp(path: Path) -> Stamp:
    """Changes with the file; None while there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
