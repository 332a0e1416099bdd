"""What placement asks of an index: who caches how much of this prefix."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Protocol

from workers.core.events import KVEvent
from workers.core.hashing import BlockId


class PrefixMirror(Protocol):
    """Which replica caches which block, as the replicas say. They are known by their id."""

    @property
    def evicted(self) -> int:
        """Blocks that were forgotten for want of room."""

    def apply(self, replica: str, events: Sequence[KVEvent]) -> None:
        """What the replica says it stored and dropped, in order."""

    def replace(self, replica: str, blocks: Sequence[BlockId]) -> Generator[None]:
        """The replica holds exactly these, no block twice. Works from yield to yield, so that
        others may run between; what match() says changes once, at the end."""

    def clear(self, replica: str) -> None:
        """The replica holds nothing any more."""

    def match(self, blocks: Sequence[BlockId]) -> Mapping[str, int]:
        """Leading blocks that each replica holds; replicas that hold none are left out."""

    def count(self, replica: str) -> int:
        """Blocks known of one replica."""

    def held(self, replica: str) -> set[BlockId]:
        """All blocks known of one replica. Slow."""

    def __len__(self) -> int:
        """Different blocks known."""


class PrefixIndex(PrefixMirror, Protocol):
    """A mirror that also counts on what was just sent to a replica."""

    @property
    def changes(self) -> int:
        """While it is the same, so is what match() says."""

    def expect(self, replica: str, blocks: Sequence[BlockId]) -> Sequence[BlockId]:
        """The replica is about to store these: match() finds them from now on, for a while. Returns
        those that it was not known to store."""
