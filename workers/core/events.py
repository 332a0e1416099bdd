"""What a block pool says about its prefix cache: blocks stored and blocks removed, in order."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import NamedTuple

from workers.core.hashing import BlockId


class EventKind(StrEnum):
    STORED = "stored"
    REMOVED = "removed"
    CLEARED = "cleared"


class KVEvent(NamedTuple):
    """One or more blocks that changed alike. CLEARED carries none: everything before it is void."""

    kind: EventKind
    blocks: tuple[BlockId, ...] = ()


class EventLog:
    """Collects events until somebody takes them; neighbours of one kind are packed into one."""

    def __init__(self) -> None:
        self._pending: list[tuple[EventKind, list[BlockId]]] = []

    def record(self, kind: EventKind, blocks: Collection[BlockId]) -> None:
        if self._pending and self._pending[-1][0] is kind:
            self._pending[-1][1].extend(blocks)
        elif blocks:
            self._pending.append((kind, list(blocks)))

    def take(self) -> list[KVEvent]:
        taken = [KVEvent(kind, tuple(blocks)) for kind, blocks in self._pending]
        self._pending.clear()
        return taken
