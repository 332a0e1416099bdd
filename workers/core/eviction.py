"""Which unreferenced block gives way first. The pool tells a policy what becomes idle and what is
wanted again; the policy only ranks."""

from __future__ import annotations

from typing import Protocol


class EvictionPolicy(Protocol):
    def idle(self, block: int) -> None:
        """The last reference to a cached block is gone."""

    def wanted(self, block: int) -> None:
        """An idle block is referenced again, or its content is void."""

    def victim(self) -> int:
        """Choose and forget one idle block; there is one."""

    def __len__(self) -> int: ...

    def __contains__(self, block: int) -> bool: ...


class LRU:
    """Least recently used. Sequences give their blocks back tail first, so a prefix outlives what
    was built on it."""

    def __init__(self) -> None:
        self._order: dict[int, None] = {}

    def idle(self, block: int) -> None:
        self._order[block] = None

    def wanted(self, block: int) -> None:
        del self._order[block]

    def victim(self) -> int:
        block = next(iter(self._order))
        del self._order[block]
        return block

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, block: int) -> bool:
        return block in self._order
